"""Whether the numbers of a record are those that its own rows give: all who read records ask here."""

from __future__ import annotations

from math import isclose

from bench.store.metrics import Measurement, rate
from bench.store.record import Record


def disagreement(record: Record) -> str:
    """Say which number of a record its rows do not give; empty if there is none.

    The first measure is the share of rows that succeed, where there are rows. Of any measure the value lies
    in its interval.
    """
    for place, (metric, m) in enumerate(record.measurements.items()):
        if place == 0 and record.rows and not m.failed:
            again = first_rate(record)
            if not same(m, again):
                return f"{metric} {said(m)}, its rows give {said(again)}"
        if None not in (m.value, m.low, m.high) and not _between(m):
            return f"{metric} {said(m)} is not in its interval"
    return ""


def first_rate(record: Record) -> Measurement:
    """Return a record's first measure as its rows give it."""
    return rate([row.success for row in record.rows])


def same(a: Measurement, b: Measurement) -> bool:
    """Say whether two measurements are equal, up to rounding in the last places."""
    pairs = ((a.value, b.value), (a.low, b.low), (a.high, b.high))
    return (a.n, a.unscored) == (b.n, b.unscored) and all(
        x is y or (x is not None and y is not None and isclose(x, y, rel_tol=1e-9, abs_tol=1e-12))
        for x, y in pairs
    )


def said(m: Measurement) -> str:
    """Return a measurement in words: "0.5 [0.237-0.763] (N=10)"."""
    value = "none" if m.value is None else f"{m.value:.4g}"
    ends = "" if m.low is None or m.high is None else f" [{m.low:.3f}-{m.high:.3f}]"
    return f"{value}{ends} (N={m.n})"


def _between(m: Measurement) -> bool:
    value, low, high = m.value or 0.0, m.low or 0.0, m.high or 0.0
    room = 1e-9 * max(1.0, abs(value))
    return low - room <= value <= high + room
