"""Runs cells one after the other in this process, with progress bars; what is done is skipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
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

from bench.plan import Cell
from bench.report.text import plain
from bench.run import Erased, Matched, Runner, Settings, judge_images
from bench.run import Progress as StageCallback
from bench.store import Result, Store
from bench.tasks import Task
from bench.workers import Workers


def run_cells(
    cells: Sequence[Cell],
    store: Store,
    settings: Settings,
    console: Console,
    workers: Workers | None = None,
) -> Iterator[tuple[Result, bool]]:
    """Yield each cell's record, and whether it was there already.

    A record is written as soon as its cell is finished. Two processes may share a store: a cell is
    computed by the first and read by the second. ``workers`` attack one cell together.
    """
    with _bars(console) as (progress, stage):
        whole = progress.add_task("cells", total=len(cells))
        runner = Runner(replace(settings, progress=stage), workers)
        for cell in cells:
            names = f"{cell.task} · {cell.method.name} · {cell.attack.name}"
            progress.update(whole, description=plain(names))
            with FileLock(settings.artifacts.lock(cell.id)):
                found = store.get(cell)
                known = found is not None and found.status != "failed"
                if not known or found is None:
                    found = runner.run(cell)
                    store.put(found)
                    _picture(runner, store, found)
            progress.advance(whole)
            yield found, known


def judge_cell(
    cell: Cell, task: Task, matched: Matched, store: Store, settings: Settings, console: Console
) -> tuple[Result, bool]:
    """Return the record of images that were made elsewhere, and whether it was there already."""
    with _bars(console) as (_, stage), FileLock(settings.artifacts.lock(cell.id)):
        found = store.get(cell)
        if found and found.status != "failed":
            return found, True
        found = judge_images(cell, task, matched, replace(settings, progress=stage))
        store.put(found)
    return found, False


def erase_cell(cell: Cell, settings: Settings, console: Console) -> tuple[Erased, Path]:
    """Return a cell's erased model, and the file of what changed."""
    with _bars(console) as (_, stage), FileLock(settings.artifacts.lock(cell.erase_key)):
        erased = Runner(replace(settings, progress=stage)).erase(cell)
    return erased, settings.artifacts.erasure(cell.erase_key) / "delta.safetensors"


def _picture(runner: Runner, store: Store, result: Result) -> None:
    """Save original | erased | attacked beside the record of a target cell."""
    from bench.report.pictures import save_grid

    if runner.settings.keep_images is False or result.status != "ok" or not result.rows:
        return
    path = store.path(result.cell).with_suffix(".png")
    save_grid(path, result, runner.samples(result.cell, 12))


@contextmanager
def _bars(console: Console) -> Iterator[tuple[Progress, StageCallback]]:
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

        def stage(name: str, done: int, total: int) -> None:
            if name not in bars:
                for old in bars.values():
                    progress.remove_task(old)
                bars.clear()
                bars[name] = progress.add_task(f"  {plain(name)}", total=total)
            progress.update(bars[name], completed=done, total=total)

        yield progress, stage
