"""Shows how far a run is: as bars in a terminal, as a line every half minute in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

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

from bench.plan.cell import Cell
from bench.report.text import plain

StageCallback = Callable[[str, int, int], None]
EVERY = 30.0  # seconds between lines, where there is no terminal


def named(cell: Cell) -> str:
    """Return a cell's name for progress and messages."""
    return f"{cell.task} · {cell.method.name} · {cell.attack.name}"


@dataclass(frozen=True, slots=True)
class Look:
    """What a process does at the moment: so many of a stage's steps of a cell.

    Args:
        cell: Its name; empty between cells.
        stage: "attack", "generate", or what a plug-in calls it.
        done: Steps that are done.
        total: Steps of the stage.
    """

    cell: str = ""
    stage: str = ""
    done: int = 0
    total: int = 1

    def __str__(self) -> str:
        return f"{self.cell} · {self.stage}" if self.stage else self.cell


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=18),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


@contextmanager
def bars(console: Console, cells: int = 1) -> Iterator[tuple[Callable[[str], None], StageCallback]]:
    """Yield two functions that show progress, of cells and of stages.

    A stage that has not ended stays while another reports: an attack's prompts beside its steps.
    """
    if not console.is_terminal:
        yield _lines(console)
        return
    with _progress(console) as progress:
        bars: dict[str, TaskID] = {}
        whole = progress.add_task("cells", total=cells, completed=-1) if cells > 1 else None

        def clear(names: Iterable[str]) -> None:
            for name in list(names):
                progress.remove_task(bars.pop(name))

        def begin(names: str) -> None:
            clear(bars)
            if whole is not None:
                progress.update(whole, description=plain(names), advance=1)

        def stage(name: str, done: int, total: int) -> None:
            if name not in bars:
                ended = {task.id for task in progress.tasks if task.finished}
                clear(old for old, task in bars.items() if task in ended)
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
            _line(console, f"{Look(now, name)}: {done} of {total}")

    return begin, stage


def _line(console: Console, line: str) -> None:
    console.print(plain(line), highlight=False, markup=False, soft_wrap=True)


@contextmanager
def crew_bars(console: Console, cells: int) -> Iterator[Callable[[int, Mapping[int, Look]], None]]:
    """Yield a function that shows how many cells are done, and what each worker does."""
    if not console.is_terminal:
        yield _crew_lines(console, cells)
        return
    with _progress(console) as progress:
        whole = progress.add_task("cells", total=cells)
        rows: dict[int, tuple[str, TaskID]] = {}

        def show(done: int, looks: Mapping[int, Look]) -> None:
            progress.update(whole, completed=done)
            for worker, look in sorted(looks.items()):
                said = plain(f"{worker}  {look}")
                if rows.get(worker, ("",))[0] != said:  # the time of a stage begins anew
                    if worker in rows:
                        progress.remove_task(rows[worker][1])
                    rows[worker] = said, progress.add_task(said, total=look.total)
                progress.update(rows[worker][1], completed=look.done, total=look.total)

        yield show


def _crew_lines(console: Console, cells: int) -> Callable[[int, Mapping[int, Look]], None]:
    last = time.monotonic()

    def show(done: int, looks: Mapping[int, Look]) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            each = (
                f"; {n}: {look} {look.done} of {look.total}" for n, look in sorted(looks.items())
            )
            _line(console, f"{done} of {cells} cells{''.join(each)}")

    return show
