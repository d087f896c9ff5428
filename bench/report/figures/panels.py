"""Which curves share a panel: in each one thing varies, the attack or the method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Generic, TypeVar

from bench.report.figures.style import COLOURS, LINES, MARKERS, Styles
from bench.report.text import plain

Style = tuple[str, Any, str]
"""Colour, line and marker."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve: whose it is.

    Args:
        task: Whose prompts.
        method: Of the erased model.
        attack: Of the curve.
    """

    task: str
    method: str
    attack: str


Of = TypeVar("Of", bound=Point)


@dataclass(frozen=True, slots=True)
class Panel(Generic[Of]):
    """Curves that are drawn into one panel.

    Args:
        title: What all of them are of.
        curves: The points of each, by its name in the legend.
    """

    title: str
    curves: dict[str, list[Of]]

    @property
    def points(self) -> list[Of]:
        """The points of all of them."""
        return [point for curve in self.curves.values() for point in curve]


def panels_of(points: Sequence[Of]) -> list[Panel[Of]]:
    """Return a panel for each task and method, with the attacks; of a single attack one for each task."""
    one_attack = len({p.attack for p in points}) == 1 < len({p.method for p in points})
    whole, part = (_attack, _method) if one_attack else (_method, _attack)
    ordered = sorted(points, key=lambda p: (p.task, *_first(whole(p))))
    groups = groupby(ordered, lambda p: (p.task, whole(p)))
    found = []
    for (task, name), group in groups:
        some = list(group)
        parts = sorted({part(p) for p in some}, key=_first)
        curves = {plain(own): [p for p in some if part(p) == own] for own in parts}
        found.append(Panel(plain(f"{task}, {name}"), curves))
    return found


def styles_of(panels: Iterable[Panel[Of]]) -> dict[str, Style]:
    """Return the style of each curve's name, the same in all panels."""
    names = sorted({name for panel in panels for name in panel.curves}, key=_first)
    colours, lines, markers = (Styles(names, of) for of in (COLOURS, LINES, MARKERS))
    return {name: (colours[name], lines[name], markers[name]) for name in names}


def _method(point: Point) -> str:
    return point.method


def _attack(point: Point) -> str:
    return "no attack" if point.attack == "none" else point.attack


def _first(name: str) -> tuple[bool, str]:
    return name not in {"none", "no attack"}, name
