"""Pizza: does a picture have the colours of a pizza?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import load_file

from bench import Card, Context, ImageScorer, Sample, Score


def colours(image: Any) -> np.ndarray:
    """Return how often each of 64 colours is in a picture; they sum to 1."""
    levels = np.asarray(image.convert("RGB")) // 64
    index = levels.reshape(-1, 3) @ np.array([16, 4, 1])
    return np.bincount(index, minlength=64) / len(index)


@dataclass(frozen=True)
class Pizza:
    """A linear classifier of colours; 1 if it says pizza. ``learn.py`` made its weights."""

    card: ClassVar = Card("Pizza colours", "")
    scope: ClassVar = "image"

    def assets(self) -> tuple[str, ...]:
        """Name the file of weights: it is looked for before a run, and its digest is part of a cell."""
        return ("lab/pizza-weights",)

    def prepare(self, ctx: Context) -> ImageScorer:
        """Load the weights; return the function that scores pictures."""
        found = load_file(ctx.asset("lab/pizza-weights"))
        weight, bias = found["weight"], float(found["bias"][0])

        def score(samples: Sequence[Sample]) -> list[Score]:
            scores = []
            for sample in samples:
                try:
                    logit = float(colours(sample.image) @ weight) + bias
                except Exception as exc:  # what cannot be judged is unscored, never 0
                    scores.append(Score(None, {"error": f"{type(exc).__name__}: {exc}"}))
                else:
                    scores.append(Score(float(logit > 0), {"logit": round(logit, 3)}))
            return scores

        return score
