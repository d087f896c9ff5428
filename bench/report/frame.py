"""A table as data: figures with what they rest on. :mod:`bench.report.render` lays it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bench.report.statistics import Difference
from bench.store.metrics import Measurement

Flag = Literal[
    "differs",
    "unscored",
    "not all attacked",
    "other parameters",
    "outside",
    "equivalent",
    "other budget",
    "fewer attacks",
]
MARKS: dict[Flag, str] = {
    "differs": "*",
    "unscored": "?",
    "not all attacked": "~",
    "other parameters": "†",
    "outside": "≠",
    "equivalent": "=",
    "other budget": "#",
    "fewer attacks": "^",
}
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
        p: The exact McNemar p-value of its test: that of a rate against no attack, if nothing else is said.
        p_holm: The same after Holm, over all tests of the table.
        word: What stands in place of a number: "failed", "skipped".
        flags: What a mark beside the number says.
        digits: Decimals of a number without an interval; by default four digits in all.
        published: What a paper says in this place, also where there is no number of ours.
        difference: The number minus the published one, where the two may be compared.
        signed: Whether it is itself a difference, from -1 to 1.
        tie: Letters of its tie groups: figures that share one are not known to differ.
    """

    value: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    unscored: int = 0
    attacked: int | None = None
    detections: int | None = None
    p: float | None = None
    p_holm: float | None = None
    word: str = ""
    flags: tuple[Flag, ...] = ()
    digits: int | None = None
    published: float | None = None
    difference: float | None = None
    signed: bool = False
    tie: str = ""

    @property
    def missing(self) -> bool:
        """Whether there is no record of it."""
        return self.value is None and self.n is None and not self.word

    def flagged(self, flag: Flag, on: bool = True) -> Figure:
        """Return the figure with one more flag, if it applies."""
        return replace(self, flags=(*self.flags, flag)) if on else self


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table: its names, and a figure or ``None`` per column; a heading has no figures."""

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
        over: For each column what stands above it and its neighbours alike; empty if nothing does.
        number: What a paper counts it as.
    """

    title: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    legend: str = ""
    notes: tuple[str, ...] = ()
    compact: bool = False
    over: tuple[str, ...] = ()
    number: int | None = None

    @property
    def caption(self) -> str:
        """The title, after the number if there is one."""
        return self.title if self.number is None else f"Table {self.number}: {self.title}"


def measured(m: Measurement) -> Figure:
    """Return a measurement as a figure, marked where too many images could not be scored."""
    if m.failed:
        return Figure(word="failed", n=m.n, unscored=m.unscored)
    figure = Figure(m.value, m.n, m.low, m.high, m.unscored)
    share = m.unscored / (m.n + m.unscored) if m.n + m.unscored else 0.0
    return figure.flagged("unscored", share > UNSCORED_SHARE)


def compared(d: Difference | None) -> Figure:
    """Return a difference of two rates as a figure."""
    if d is None:
        return Figure(word="n/a")
    return Figure(d.value, d.n, d.low, d.high, p=d.p, signed=True)
