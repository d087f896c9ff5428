"""From scores to one number with its uncertainty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from statistics import NormalDist, fmean, stdev
from typing import Any

from pydantic import NonNegativeInt

from bench.core.types import Score

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number that says how many images it rests on, and how many could not be scored.

    Args:
        value: The number; ``None`` if there is nothing to compute it from.
        n: Images that it rests on.
        unscored: Images that could not be scored.
        low: Lower end of its 95 % interval; a measure of a whole set has none.
        high: Upper end.
        detail: The protocol of a measure of a whole set, as its evaluator states it.
        failed: Why the measure could not be taken at all; then there is no value.
    """

    value: float | None
    n: NonNegativeInt
    unscored: NonNegativeInt = 0
    low: float | None = None
    high: float | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    failed: str = ""

    def called(self, metric: str) -> str:
        """Return what a measure may be called: by its evaluator's word, such as for another extractor."""
        return str(self.detail.get("metric", metric))


def rate(outcomes: Sequence[bool | None]) -> Measurement:
    """Return the share of ``True`` with its Wilson interval; ``None`` counts as unscored."""
    known = [outcome for outcome in outcomes if outcome is not None]
    n, unscored = len(known), len(outcomes) - len(known)
    if not n:
        return Measurement(None, 0, unscored)
    hits, z = sum(known), NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)  # scipy is slow to import
    middle = (hits + z * z / 2) / (n + z * z)
    half = z * sqrt(hits * (n - hits) / n + z * z / 4) / (n + z * z)
    share, low, high = hits / n, max(0.0, middle - half), min(1.0, middle + half)
    return Measurement(share, n, unscored, min(low, share), max(high, share))  # if rounding differs


def any_of(outcomes: Iterable[bool | None]) -> bool | None:
    """Return ``True`` if any is true, ``None`` if none is but one is not known, else ``False``."""
    known = set(outcomes)
    return True if True in known else None if None in known else False


def mean(scores: Sequence[Score]) -> Measurement:
    """Return the mean score, with Student's t interval from two samples on.

    A score that is not finite counts as unscored.
    """
    from scipy.special import stdtrit  # slow to import

    values = [s.value for s in scores if s.value is not None and isfinite(s.value)]
    n, unscored = len(values), len(scores) - len(values)
    if not n:
        return Measurement(None, 0, unscored)
    m = fmean(values)
    if n == 1:
        return Measurement(m, 1, unscored)
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * stdev(values) / n**0.5
    return Measurement(m, n, unscored, m - half, m + half)


def complement(m: Measurement) -> Measurement:
    """Return ``1 - m``: CER from ASR."""
    if m.value is None or m.low is None or m.high is None:
        return m
    return Measurement(1 - m.value, m.n, m.unscored, 1 - m.high, 1 - m.low)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Return the exact two-sided McNemar p-value of paired outcomes; 1.0 if none differ."""
    from scipy.special import (
        bdtr,
    )  # its stats are slow to import, and a finished matrix needs no more

    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    lower = float(bdtr(min(only_first, only_second), only_first + only_second, 0.5))
    return min(1.0, 2 * lower)  # both tails of a fair coin
