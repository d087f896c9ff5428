"""Runs cells one after the other in this process, with progress bars; what is done is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from rich.console import Console

from bench.engine.cells import finish
from bench.engine.display import bars, named
from bench.engine.erase import Erased, erasure_files
from bench.engine.folder import Matched, judge_images
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.plan.cell import Cell
from bench.plan.plan import Job
from bench.store.record import Record
from bench.store.store import Store


def run_cells(
    jobs: Sequence[Job],
    store: Store,
    settings: Settings,
    console: Console,
    fits: Callable[[Cell], bool] = lambda cell: True,
) -> Iterator[tuple[Record, bool]]:
    """Yield each cell's record, and whether it was there already.

    A record is written as soon as its cell is finished. ``fits`` is asked before each cell; the first that
    does not fit is the end.
    """
    settings.artifacts.check_writable()
    with bars(console, len(jobs)) as (begin, stage):
        runner = Runner(replace(settings, progress=stage))
        for job in jobs:
            if not fits(job.cell):
                return
            begin(named(job.cell))
            yield finish(runner, store, job)


def judge_cell(
    job: Job, matched: Matched, store: Store, settings: Settings, console: Console
) -> tuple[Record, bool]:
    """Return the record of images that were made elsewhere, and whether it was there already."""
    settings.artifacts.check_writable()
    cell = job.cell
    with bars(console) as (_, stage), settings.artifacts.lock(cell.id, f"{cell.task} of images"):
        found = store.get(cell)
        if found and found.status != "failed":
            return found, True
        found = judge_images(job, matched, replace(settings, progress=stage))
        store.put(found)
    return found, False


def erase_cell(
    cell: Cell, settings: Settings, console: Console
) -> tuple[Erased, dict[str, Iterator[bytes]]]:
    """Return a cell's erased model, and by name what its files hold, piece by piece."""
    cache, what = settings.artifacts, f"{cell.method.name} of {cell.concept.name}"
    cache.check_writable()
    with bars(console) as (_, stage), cache.lock(cell.erase_key, what):
        erased = Runner(replace(settings, progress=stage)).erase(cell)
        return erased, {path.name: cache.content(path) for path in erasure_files(cache, cell)}
