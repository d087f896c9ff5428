"""Fade: is the picture empty? A model that draws nothing has erased everything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from bench import Card, Context, ImageScorer, Sample, Score


@dataclass(frozen=True)
class Fade:
    """1 if a picture is nearly of one colour.

    Args:
        spread: Below this standard deviation of brightness, of 255, a picture is empty.
    """

    card: ClassVar = Card("Fade", "")
    scope: ClassVar = "image"

    spread: Annotated[float, Field(gt=0, le=128)] = 8.0

    def prepare(self, ctx: Context) -> ImageScorer:
        """Load what is needed; return the function that scores pictures."""
        return self._scores

    def _scores(self, samples: Sequence[Sample]) -> list[Score]:
        scores = []
        for sample in samples:
            try:
                found = float(np.asarray(sample.image.convert("L"), float).std())
            except Exception as exc:  # what cannot be judged is unscored, never 0
                scores.append(Score(None, {"error": f"{type(exc).__name__}: {exc}"}))
            else:
                scores.append(Score(float(found < self.spread), {"spread": round(found, 2)}))
        return scores
