"""A table as data: figures with what they rest on. :mod:`bench.report.render` lays it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bench.store.metrics import Measurement

Flag = Literal["differs", "unscored", "not all attacked"]
MARKS: dict[Flag, str] = {"differs": "*", "unscored": "?", "not all attacked": "~"}
UNSCORED_SHARE = 0.05
"""The largest share of unscored images that a figure may rest on without a mark."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One entry of a table: a number and what it rests on, or a word where there is no number.

    Args:
        value: The number.
        n: Images or prompts that it rests on.
        low: Lower end of its 95 % interval.
        high: Upper end.
        unscored: Images that could not be scored.
        attacked: Prompts that were attacked, if that is not all of them.
        detections: A second count, shown in brackets.
        p: The exact McNemar p-value against no attack.
        word: What stands in place of a number: "failed", "skipped".
        flags: What a mark beside the number says.
        digits: Decimals of a number without an interval; by default four digits in all.
    """

    value: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    unscored: int = 0
    attacked: int | None = None
    detections: int | None = None
    p: float | None = None
    word: str = ""
    flags: tuple[Flag, ...] = ()
    digits: int | None = None

    def flagged(self, flag: Flag, on: bool = True) -> Figure:
        """Return the figure with one more flag, if it applies."""
        return replace(self, flags=(*self.flags, flag)) if on else self


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table: its names, and for each column a figure or ``None``."""

    names: tuple[str, ...]
    figures: tuple[Figure | None, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Lines of figures; nothing in it is formatted or escaped.

    Args:
        title: What it shows.
        names: Columns that say what a line is about.
        columns: Columns of figures.
        lines: What is in it.
        legend: How to read it.
        notes: What a reader must know of single figures.
        compact: Whether a layout for people leaves out the intervals.
    """

    title: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    legend: str = ""
    notes: tuple[str, ...] = ()
    compact: bool = False


def measured(m: Measurement) -> Figure:
    """Return a measurement as a figure, marked where too many images could not be scored."""
    if m.failed:
        return Figure(word="failed", n=m.n, unscored=m.unscored)
    figure = Figure(m.value, m.n, m.low, m.high, m.unscored)
    share = m.unscored / (m.n + m.unscored) if m.n + m.unscored else 0.0
    return figure.flagged("unscored", share > UNSCORED_SHARE)
