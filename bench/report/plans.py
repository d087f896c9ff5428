"""What is printed of a plan: its cells, which are done, and what the rest costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.plan.cell import Cell
from bench.report.axes import labels
from bench.report.costs import Estimate, Forecast, spoken
from bench.report.frame import Figure, Line, Table
from bench.store.record import Record

_SOMETIMES: dict[str, Callable[[Cell], object]] = {
    "model": lambda cell: cell.model,
    "type": lambda cell: cell.dtype,
    "erase seed": lambda cell: cell.erased_with,
    "seed": lambda cell: cell.seed,
}
"""Columns that are shown where cells differ in them."""
_LEGEND = (
    "s: about how long it will take, with what the lines above it leave behind; like: which finished "
    "cells that is learnt from: of the same method, attack and task (other seeds or prompts), else of the "
    "same task, kind of concept, method, attack, or model; images: those that a floor draws; ?: there is "
    "none yet"
)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a plan's cells will cost.

    Args:
        cells: In the plan's order; with each an estimate, or ``None`` where it is done.
        device: Where they will run.
    """

    cells: Sequence[tuple[Cell, Estimate | None]]
    device: str = "cpu"

    @property
    def left(self) -> list[Estimate]:
        """The estimates of what is to be done."""
        return [estimate for _, estimate in self.cells if estimate]

    @property
    def on_gpu(self) -> bool:
        """Whether they will run where hours are counted."""
        return self.device.startswith("cuda")

    def __str__(self) -> str:
        """Say how much is done and what the rest costs, in a line."""
        done = len(self.cells) - len(self.left)
        said = f"{done} of {len(self.cells)} cells done"
        if not self.left:
            return said
        total = sum(each.seconds or 0.0 for each in self.left)
        unknown = sum(each.seconds is None for each in self.left)
        if unknown == len(self.left):
            return f"{said}; nothing is known yet of what such cells cost"
        said += f"; the rest: about {spoken(total)}"
        if self.on_gpu:
            said += f", {total / 3600:.2g} GPU-hours"
        return said + (f", and {unknown} cells unknown" if unknown else "")


def bill(cells: Sequence[tuple[Cell, bool]], forecast: Forecast) -> Bill:
    """Return what cells will cost, one after the other; ``True`` marks those that are done."""
    left = [(cell, None if done else forecast.count(cell)) for cell, done in cells]
    return Bill(left, forecast.device)


def plan_facts(bill: Bill) -> list[dict[str, object]]:
    """Return the cells as plain values, with every parameter; the seconds that one will take if known."""
    return [
        {"id": c.id, "done": not e, "seconds": e.seconds if e else None, **asdict(c)}
        for c, e in bill.cells
    ]


def summary_tables(bill: Bill) -> list[Table]:
    """Lay out how many cells are done and what the others cost, by task, method and attack."""
    planned = [Record(cell, "ok") for cell, _ in bill.cells]
    tables = []
    axes: dict[str, Callable[[Record], str]] = {
        "task": lambda r: r.cell.task,
        "method": labels(planned, "method"),
        "attack": labels(planned, "attack"),
    }
    for axis, named in axes.items():
        lines: dict[str, list[Estimate | None]] = {}
        for r, (_, estimate) in zip(planned, bill.cells, strict=True):
            lines.setdefault(named(r), []).append(estimate)
        tables.append(_summary(axis, lines, on_gpu=bill.on_gpu))
    return tables


def _summary(axis: str, lines: Mapping[str, Sequence[Estimate | None]], *, on_gpu: bool) -> Table:
    unknown = any(e and e.seconds is None for some in lines.values() for e in some)
    columns = ["cells", "done", "to do", "s", *(["GPU-hours"] if on_gpu else [])]

    def figures(some: Sequence[Estimate | None]) -> Iterator[Figure]:
        left = [estimate for estimate in some if estimate]
        seconds = sum(estimate.seconds or 0.0 for estimate in left)
        yield from map(Figure, (len(some), len(some) - len(left), len(left)))
        yield Figure(seconds, digits=0)
        if on_gpu:
            yield Figure(seconds / 3600, digits=2)
        if unknown:
            yield Figure(sum(estimate.seconds is None for estimate in left))

    return Table(
        f"Cells by {axis}",
        (axis,),
        (*columns, *(["unknown"] if unknown else [])),
        tuple(Line((name,), tuple(figures(some))) for name, some in lines.items()),
        "unknown: cells of which nothing is known yet" if unknown else "",
    )


def plan_table(bill: Bill) -> Table:
    """Lay out the cells of a request, in their order: which are done, and what the others cost."""
    cells = [cell for cell, _ in bill.cells]
    planned = [Record(cell, "ok") for cell in cells]
    method_of, attack_of = labels(planned, "method"), labels(planned, "attack")
    further = {k: value for k, value in _SOMETIMES.items() if len(set(map(value, cells))) > 1}
    lines = [
        Line(
            (
                *(r.cell.concept.name, r.cell.task, method_of(r), attack_of(r)),
                *(str(value(r.cell)) for value in further.values()),
                r.cell.id,
            ),
            (Figure(r.cell.prompts), *_state(estimate)),
        )
        for r, (_, estimate) in zip(planned, bill.cells, strict=True)
    ]
    names = ("concept", "task", "method", "attack", *further, "cell")
    legend = _LEGEND if bill.left else ""
    return Table("Cells", names, ("prompts", "state", "s", "like"), tuple(lines), legend)


def _state(estimate: Estimate | None) -> tuple[Figure | None, ...]:
    if estimate is None:
        return Figure(word="done"), None, None
    seconds = estimate.seconds
    cost = None if seconds is None else Figure(seconds, digits=0 if seconds >= 10 else 1)
    return Figure(word="to do"), cost, Figure(word=estimate.like)
