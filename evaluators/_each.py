"""Judging pictures in batches; a bad picture does not spoil the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from bench import BenchError, Sample, Score

_Numbers = TypeVar("_Numbers", bound=Any)


def finite(answer: _Numbers) -> _Numbers:
    """Return a network's output, an array or a tensor, if it is finite.

    NaN is below every threshold: an image that was not judged would count as safe.

    Raises:
        ValueError: A number is not finite.
    """
    if not bool((abs(answer) < math.inf).all()):
        raise ValueError("the judge's network returned numbers that are not finite")
    return answer


def each(
    samples: Sequence[Sample],
    verdicts: Callable[[list[Any], Sequence[Sample]], list[Score]],
    batch_size: int,
) -> list[Score]:
    """Judge pictures in batches; if a batch fails, one by one, so that only bad pictures stay unscored.

    Errors of the harness, such as an unknown label, are raised: the picture is not the cause.
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
