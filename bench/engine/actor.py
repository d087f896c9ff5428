"""What runs in each worker of Ray: cells one after the other, with their models kept in memory.

Nothing here imports Ray: :mod:`bench.engine.crew` makes actors of the class.
"""

from __future__ import annotations

import logging
import os
import platform
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.devices import described, use
from bench.core.errors import BenchError
from bench.core.foreign import watched_keyboard
from bench.engine.display import Look, named
from bench.plan.plan import Job
from bench.store.record import Record
from bench.store.store import Store

if TYPE_CHECKING:
    from bench.engine.runner import Runner
    from bench.engine.settings import Settings

log = logging.getLogger("bench")
Said = list[tuple[int, str]]
"""Lines for the user, each with its level."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker needs to know before its first cell.

    Args:
        settings: How cells are computed.
        store: Where records go.
        threads: Of each worker.
        folder: The user's current folder, from which relative paths are meant.
        level: Of what is logged.
    """

    settings: Settings
    store: Store
    threads: int
    folder: Path
    level: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is.

    Args:
        node: Its machine.
        pid: Its process.
        device: What it computes on, in words.
    """

    node: str
    pid: int
    device: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.node}"


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that the harness foresees, as it travels between processes."""

    exit_code: int
    reason: str


class Worker:
    """One worker: all its methods but :meth:`look` run in one thread, one after the other."""

    def __init__(self) -> None:
        # The user's interrupt reaches the process that asked; one that comes here is a plug-in's.
        self._keyboard = watched_keyboard()
        self._keyboard.__enter__()
        self._look, self._said = Look(), deque[tuple[int, str]]()
        self._runner: Runner | None = None
        self._store = Store(Path())

    def begin(self, order: Order) -> Place | Failure:
        """Get ready: find the device, load what is slow to load."""
        import torch

        from bench.engine.runner import Runner

        with suppress(OSError):  # another machine may not have it
            os.chdir(order.folder)
        log.setLevel(order.level)
        log.addHandler(_Listener(self._said))
        torch.set_num_threads(order.threads)
        try:
            device = use(order.settings.device)
        except BenchError as exc:
            return Failure(exc.exit_code, str(exc))
        self._store = order.store
        self._runner = Runner(replace(order.settings, device=device, progress=self._progress))
        return Place(platform.node(), os.getpid(), described(device))

    def run(self, job: Job) -> tuple[Record | Failure, bool, Said]:
        """Return a cell's record, whether it was there already, and what was said."""
        from bench.engine.cells import finish

        assert self._runner  # `begin` comes first
        self._look, known = Look(named(job.cell)), False
        found: Record | Failure
        try:
            found, known = finish(self._runner, self._store, job)
        except BenchError as exc:
            found = Failure(exc.exit_code, str(exc))
        self._look = Look()
        return found, known, self._drained()

    def help(self, job: Job, place: float) -> Said:
        """Take parts of a cell that another worker computes; return what was said."""
        assert self._runner  # `begin` comes first
        self._look = Look(named(job.cell))
        try:
            self._runner.help(job, place)
        except BenchError as exc:  # whoever computes the cell meets it, too
            log.info("%s", exc)
        self._look = Look()
        return self._drained()

    def look(self) -> tuple[Look, Said]:
        """Return what it does, and what was said since; another thread answers this at any time."""
        return self._look, self._drained()

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._look = Look(self._look.cell, stage, done, total)

    def _drained(self) -> Said:
        said = []
        with suppress(IndexError):
            while True:
                said.append(self._said.popleft())
        return said


class _Listener(logging.Handler):
    """Keeps what is logged for the process that asked."""

    def __init__(self, said: deque[tuple[int, str]]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, and below it the traceback if there is one."""
        self._said.append((record.levelno, self.format(record)))
