"""Figures for which a model has to run: it is erased again, or taken from the cache, as a record says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from bench.core.devices import AUTO, use
from bench.core.errors import SpecError
from bench.engine.display import bars
from bench.engine.examples import examples, pictures
from bench.engine.neuron_figures import neuron_overlays, neuron_sensitivity
from bench.engine.pruned import pruning_strategies
from bench.engine.settings import Settings
from bench.report.figures.catalog import Made
from bench.report.figures.select import Wanted
from bench.store.record import Record

_MAKERS = {
    "examples": examples,
    "sensitivity": neuron_sensitivity,
    "neurons": neuron_overlays,
    "pruning": pruning_strategies,
}


def with_model(
    name: str,
    records: Sequence[Record],
    wanted: Wanted,
    *,
    device: str = AUTO,
    limit: int | None = None,
    console: Console,
) -> Made:
    """Make a figure for which a model runs.

    Args:
        name: Which one.
        records: All there are.
        wanted: Which cells it is about.
        device: Where models run.
        limit: Prompts of each cell; each figure has its own number.
        console: Where progress is shown.

    Raises:
        SpecError: There are no records for it, or model or method are not what they were.
    """
    with _drawing(device, console) as settings:
        return _MAKERS[name](records, wanted, settings, limit=limit)


def drawn_cell(
    record: Record,
    records: Sequence[Record],
    *,
    device: str = AUTO,
    limit: int = 6,
    console: Console,
) -> Made:
    """Draw prompts of one cell, whatever it is.

    Args:
        record: Its record.
        records: All there are.
        device: Where models run, if images have to be drawn again.
        limit: Prompts.
        console: Where progress is shown.

    Raises:
        SpecError: It has no images that could be drawn again.
    """
    if record.status != "ok" or not record.rows:
        raise SpecError(f"cell {record.cell.id}: its record has no prompts: nothing to draw")
    with _drawing(device, console) as settings:
        return pictures([record], records, settings, limit=limit)


@contextmanager
def _drawing(device: str, console: Console) -> Iterator[Settings]:
    """Yield how images are drawn, with bars that show progress."""
    device = use(device)
    with bars(console) as (_, stage):
        yield Settings(device, progress=stage)
