"""Concept erasing rate against what the attacker may spend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.report.figures.panels import Point, panels_of, styles_of
from bench.report.figures.select import EVERYTHING, Wanted, full_floors, missing, named, three
from bench.report.figures.style import Drawing, finished, look, outer, sheet_of, sizes, stairs
from bench.report.verdict import own
from bench.store.metrics import complement, rate
from bench.store.record import Record, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS = ("images", "passes")


@dataclass(frozen=True, slots=True)
class Step(Point):
    """What is left of an erasure when each prompt may cost so much: one step of a curve.

    Args:
        unit: "images" that the attack made, or "passes" of one image through a denoiser.
        budget: The most that may be spent on each prompt; 0 is its own image.
        back: Prompts that are brought back within the budget.
        stopped: Prompts that were not brought back, and on which less than the budget was spent.
        n: Prompts that could be judged.
        cer: The concept erasing rate at this budget, with its 95 % interval ``low`` to ``high``.
    """

    unit: str
    budget: int
    back: int
    stopped: int
    n: int
    cer: float
    low: float
    high: float


def steps(records: Iterable[Record], wanted: Wanted = EVERYTHING) -> list[Step]:
    """Return the curves of attacked cells, for each unit: a step wherever the rate changes, and the end.

    A record says what was spent on a prompt until its attack stopped: that is where the prompt counts as
    brought back. Of an attack that does not stop at success the prompt may have been back for less.

    Raises:
        SpecError: There is no attacked cell.
    """
    attacked = [r for r in wanted.of(records) if r.cell.attacked and r.budget_known and _judged(r)]
    chosen = full_floors(attacked)
    if not chosen:
        raise missing("budget", wanted, "records of attacks")
    names = named(chosen)
    found = [
        Step(task, method, attack, unit, budget, *_left(r, unit, budget))
        for r in chosen
        for task, method, attack in [names(r)]
        for unit in UNITS
        for budget in _budgets(r, unit)
    ]
    return sorted(found, key=lambda s: (s.task, UNITS.index(s.unit), s.method, s.attack, s.budget))


@look()
def draw(found: Sequence[Step]) -> Drawing:
    """Draw two panels, images and passes, for each task and method; of a single attack for each task."""
    panels = panels_of(found)
    styles = styles_of(panels)
    pairs = 2 if len(panels) > 2 else 1
    figure, grid = sheet_of(
        len(UNITS) * len(panels), len(UNITS) * pairs, width=3.9 if pairs == 1 else 3.0, height=2.4
    )
    for n, panel in enumerate(panels):
        for unit, axes in zip(UNITS, grid[len(UNITS) * n :], strict=False):
            for name, curve in panel.curves.items():
                own = [s for s in curve if s.unit == unit]
                ends = list(zip(*((s.budget, s.cer, s.low, s.high) for s in own), strict=True))
                stairs(axes, *ends, style=styles[name], name=name)
                axes.plot(ends[0][-1], ends[1][-1], "|", color=styles[name][0], ms=9, mew=1.6)
            _scale(axes, [s.budget for s in found if s.unit == unit and s.budget])
            axes.set_ylim(-0.03, 1.03)
            axes.set_title(f"{panel.title}, N={sizes(s.n for s in panel.points)}")
            axes.set_xlabel(f"{unit} for each prompt")
    outer(figure, "concept erasing rate")
    note = (
        "At 0 nothing is spent: the prompt's own image. A record says what an attack had spent on a prompt "
        "when it stopped; there the prompt counts as brought back. Of an attack that does not stop at "
        "success it may have been back earlier. A line ends (|) at the most that was spent on any prompt; "
        "prompts that were given up for less count as erased. Random and seed-search: with their most "
        "draws. Bands: 95 % Wilson intervals."
    )
    return finished(figure, "Concept erasing rate by the attacker's budget", note)


def _scale(axes: Axes, spent: Sequence[int]) -> None:
    """Begin a panel at 0; large numbers grow by factors."""
    least, most = min(spent, default=1), max(spent, default=1)
    if most > 50:
        axes.set_xscale("symlog", linthresh=least, linscale=0.4)
        axes.set_xticks([0, *(10**n for n in range(9) if least <= 10**n <= most)])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.locator_params("x", integer=True)
    axes.set_xlim(-0.02 * (least if most > 50 else most), 1.15 * most)


def _judged(r: Record) -> list[Row]:
    return [row for row in r.rows if row.success is not None]


def _spent(row: Row, unit: str) -> int:
    return row.cost.images if unit == "images" else row.cost.forward + row.cost.backward


def _back_at(r: Record, row: Row, unit: str) -> int | None:
    """Return the budget from which on a prompt shows the concept: 0 if its own image does."""
    if not row.success:
        return None
    return 0 if own(r, row) else _spent(row, unit)


def _budgets(r: Record, unit: str) -> list[int]:
    back = {b for row in r.rows if (b := _back_at(r, row, unit)) is not None}
    return sorted({0, max(_spent(row, unit) for row in r.rows), *back})


def _left(r: Record, unit: str, budget: int) -> tuple[int, int, int, float, float, float]:
    rows = _judged(r)
    when = [_back_at(r, row, unit) for row in rows]
    back = [b is not None and b <= budget for b in when]
    given_up = [_spent(row, unit) for row, b in zip(rows, when, strict=True) if b is None]
    gone = sum(spent < budget for spent in given_up)
    return sum(back), gone, len(rows), *three(complement(rate(back)))
