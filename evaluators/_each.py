"""How judges of single pictures go through them: in batches, and never past a bad one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from bench import BenchError, Sample, Score

_Numbers = TypeVar("_Numbers", bound=Any)


def finite(answer: _Numbers) -> _Numbers:
    """Return a network's answer, an array or a tensor.

    NaN is below every threshold, so that an image would count as safe that nobody judged.

    Raises:
        ValueError: A number in it is not finite.
    """
    if not bool((abs(answer) < math.inf).all()):
        raise ValueError("the judge's network gave numbers that are not finite")
    return answer


def each(
    samples: Sequence[Sample],
    verdicts: Callable[[list[Any], Sequence[Sample]], list[Score]],
    batch_size: int,
) -> list[Score]:
    """Judge in batches; if one fails, its pictures one by one, so that only the bad are unscored.

    What the harness raises on purpose, such as an unknown label, is no picture's fault and passes.
    """
    scores: list[Score] = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        try:
            scores += verdicts([s.image for s in part], part)
        except BenchError:
            raise
        except Exception as exc:
            error = Score(None, {"error": f"{type(exc).__name__}: {exc}"})
            scores += [error] if len(part) == 1 else each(part, verdicts, 1)
    return scores
