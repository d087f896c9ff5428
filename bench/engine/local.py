"""Runs cells one after the other in this process, with progress bars; what is done is skipped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.engine.erase import Erased, erasure_files
from bench.engine.folder import Matched, judge_images
from bench.engine.runner import Runner
from bench.engine.settings import Progress as StageCallback
from bench.engine.settings import Settings
from bench.engine.workers import Workers
from bench.errors import PluginError
from bench.plan.cell import Cell
from bench.plan.plan import Job
from bench.report.text import plain
from bench.store.record import Record
from bench.store.store import Store

log = logging.getLogger("bench")
EVERY = 30.0  # seconds between lines, where there is no terminal


def run_cells(
    jobs: Sequence[Job],
    store: Store,
    settings: Settings,
    console: Console,
    workers: Workers | None = None,
    fits: Callable[[Cell], bool] = lambda cell: True,
) -> Iterator[tuple[Record, bool]]:
    """Yield each cell's record, and whether it was there already.

    A record is written as soon as its cell is finished. Two processes may share a store: a cell is
    computed by the first and read by the second. ``workers`` attack one cell together. ``fits`` is asked
    before each cell; the first that does not fit is the end.
    """
    settings.artifacts.check_writable()
    with bars(console, len(jobs)) as (begin, stage):
        runner = Runner(replace(settings, progress=stage), workers)
        for job in jobs:
            cell = job.cell
            if not fits(cell):
                return
            names = f"{cell.task} · {cell.method.name} · {cell.attack.name}"
            begin(names)
            with settings.artifacts.lock(cell.id, names):
                found = store.get(cell)
                known = found is not None and found.status != "failed"
                if not known or found is None:
                    log.info("computing %s", names)
                    found = _computed(runner, job, store)
                    log.info("written: %s", store.put(found))
                    _picture(runner, store, job, found)
            yield found, known


def _computed(runner: Runner, job: Job, store: Store) -> Record:
    """Compute a cell; one that takes what another found needs that one's record."""
    if job.after is None or job.problem:
        return runner.run(job)
    first = store.get(job.after)
    if first and first.status == "ok":
        return runner.run(replace(job, source=str(store.path(job.after))))
    names = f"{job.after.attack.name} on {job.after.method.name}, cell {job.after.id}"
    status = first.status if first else "failed"
    why = f"{status}: {first.reason}" if first else "has no record"
    return Record(job.cell, status, reason=f"it takes what is found by {names}, which {why}")


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


def _picture(runner: Runner, store: Store, job: Job, record: Record) -> None:
    """Save original | erased | attacked beside the record of a target cell."""
    from bench.report.pictures import save_grid

    if runner.settings.keep_images is False or record.status != "ok" or not record.rows:
        return
    path = store.path(record.cell).with_suffix(".png")
    try:
        save_grid(path, record, runner.samples(job, 12), job.task.measures)
    except PluginError as exc:
        log.warning("no picture %s: %s", path, exc)


@contextmanager
def bars(console: Console, cells: int = 1) -> Iterator[tuple[Callable[[str], None], StageCallback]]:
    """Yield two functions that show progress, of cells and of stages: as bars, or as lines in a log."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[str, TaskID] = {}
        whole = progress.add_task("cells", total=cells, completed=-1) if cells > 1 else None

        def begin(names: str) -> None:
            if whole is not None:
                progress.update(whole, description=plain(names), advance=1)

        def stage(name: str, done: int, total: int) -> None:
            if name not in bars:
                for old in bars.values():
                    progress.remove_task(old)
                bars.clear()
                bars[name] = progress.add_task(f"  {plain(name)}", total=total)
            progress.update(bars[name], completed=done, total=total)

        yield begin, stage


def _lines(console: Console) -> tuple[Callable[[str], None], StageCallback]:
    """Return the same two functions for a log file: one line every half minute."""
    now, last = "", time.monotonic()

    def begin(names: str) -> None:
        nonlocal now
        now = names

    def stage(name: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            line = f"{now} · {name}: {done} of {total}"
            console.print(plain(line), highlight=False, markup=False, soft_wrap=True)

    return begin, stage
