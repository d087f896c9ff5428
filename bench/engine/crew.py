"""Runs cells on workers of Ray; a cell whose worker is lost is computed by another.

Each worker (:class:`bench.engine.actor.Worker`) is an actor, which keeps its models. It reads and writes
the store and the cache, as a process on its own does: what travels are jobs, records and progress.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.core.errors import AssetError, BenchError, PluginError, SpecError, StoreError
from bench.engine.actor import Failure, Order, Place, Said, Worker
from bench.engine.cluster import Seats
from bench.engine.display import Look, crew_bars, named
from bench.engine.schedule import Chain, Schedule, parts
from bench.engine.settings import Settings
from bench.plan.cell import Cell
from bench.plan.plan import Job
from bench.report.text import say
from bench.store.record import Record
from bench.store.store import Store

log = logging.getLogger("bench")
_ASIDE = "aside"  # the thread that answers while another computes
LOSSES = 3
"""So many workers may be lost with one cell before it counts as failed, or before one could begin."""
_TICK, _LONG = 0.5, 60.0  # seconds between looks, and until it is said that workers have no place
_ERRORS = {kind.exit_code: kind for kind in (SpecError, PluginError, AssetError, StoreError)}


@dataclass(slots=True, eq=False)
class _Member:
    """A worker, seen from here.

    Args:
        number: Its own, for the user.
        actor: It.
        answer: What it is asked for: to begin, or a cell.
        job: The cell.
        place: Where it is, once it has begun.
        look: What it did last.
        looking: The question what it does.
        placed: Whether Ray has found a place for it.
        since: When it was asked for.
        helped: Cells of others that it has helped with.
    """

    number: int
    actor: Any
    answer: Any = None
    job: Job | None = None
    place: Place | None = None
    look: Look = field(default_factory=Look)
    looking: Any = None
    placed: bool = False
    since: float = field(default_factory=time.monotonic)
    helped: set[str] = field(default_factory=set)


class Crew:
    """Workers on the machines of a Ray that was started or joined.

    Args:
        ray: It.
        seats: How many workers, and what each takes.
        order: What they need to know.
        console: Where the device is said.
    """

    def __init__(self, ray: Any, seats: Seats, order: Order, console: Console) -> None:
        self._ray, self._order, self._console = ray, order, console
        actor = ray.remote(num_cpus=1, num_gpus=seats.gpus, concurrency_groups={_ASIDE: 1})(Worker)
        self._hire, self._seats = actor.remote, seats
        self._members: dict[int, _Member] = {}
        self._lost = Counter[str]()
        self._said = self._said_who_waits = False
        for number in range(1, seats.count + 1):
            self._begin(number)

    def _begin(self, number: int) -> None:
        member = _Member(number, self._hire())
        member.answer = member.actor.begin.remote(self._order)
        self._members[number] = member

    @property
    def working(self) -> bool:
        """Whether a worker has a cell."""
        return any(member.job for member in self._members.values())

    def give(self, schedule: Schedule, fits: Callable[[Cell], bool]) -> bool:
        """Give cells to whom has none, or parts of others'; return whether there is time for more."""
        for number, member in self._members.items():
            if member.answer is not None:
                continue
            if job := schedule.take(number):
                if not fits(job.cell):
                    return False
                member.job, member.answer = job, member.actor.run.remote(job)
            elif other := next(self._shared(schedule, member), None):
                member.helped.add(other.cell.id)
                place = (number - 1) / self._seats.count
                member.answer = member.actor.help.remote(other, place)
        return True

    def _shared(self, schedule: Schedule, helper: _Member) -> Iterator[Job]:
        """Yield cells that others compute and of which a worker may take parts: their model is there."""
        for member in self._members.values():
            job = member.job
            if job is None or job.cell.id in helper.helped:
                continue
            if parts(job, self._order.settings) > 1 and schedule.erased(job.cell):
                yield job

    def finished(self, schedule: Schedule) -> Iterator[tuple[Record, bool]]:
        """Wait a moment; yield records that are ready, and whether they were there already.

        Raises:
            BenchError: A worker cannot begin, or cannot read or write.
        """
        waits = {m.answer: m for m in self._members.values() if m.answer is not None}
        ready, _ = self._ray.wait(list(waits), timeout=_TICK)
        for reference in ready:
            member = waits[reference]
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.RayTaskError:
                raise  # a fault of ours: its traceback is wanted
            except self._ray.exceptions.RayError:
                if record := self._replace(member, schedule):
                    yield record, False
                continue
            member.answer = None
            if isinstance(answer, Place | Failure):
                self._has_begun(member, answer)
            elif member.job is None:  # it has helped
                _repeat(answer)
            else:
                yield self._record(member, *answer)

    def _has_begun(self, member: _Member, answer: Place | Failure) -> None:
        if isinstance(answer, Failure):
            raise _error(answer)
        member.place = answer
        self._lost[""] = 0
        if not self._said:
            self._said = True
            count, threads = self._seats.count, self._seats.threads
            each = f"{threads} thread{'s' * (threads > 1)} each"
            say(f"device: {answer.device}; {count} workers of Ray, {each}", self._console)

    def _record(
        self, member: _Member, found: Record | Failure, known: bool, said: Said
    ) -> tuple[Record, bool]:
        member.job, member.look = None, Look()
        _repeat(said)
        if isinstance(found, Failure):
            raise _error(found)
        return found, known

    def _replace(self, member: _Member, schedule: Schedule) -> Record | None:
        """Put another in place of a worker that is lost; return the record of a cell that is given up."""
        job, who = member.job, f"worker {member.number} ({member.place or 'it had not begun'})"
        key = job.cell.id if job else ""
        self._lost[key] += 1
        again = self._lost[key] < LOSSES
        if job is None and not again:
            raise BenchError(
                f"{LOSSES} workers of Ray ended before they could begin; see Ray's logs"
            )
        schedule.drop(member.number, job if again else None)
        self._begin(member.number)
        what = f" while it computed {named(job.cell)}" if job else ""
        then = "another goes on from what is kept" if again else "the cell is given up"
        log.warning("%s was killed or crashed%s; %s", who, what, then)
        if job is None or again:
            return None
        reason = f"{LOSSES} workers were killed or crashed while they computed it; out of memory?"
        record = Record(job.cell, "failed", reason=reason)
        self._order.store.put(record)
        return record

    def looks(self) -> Mapping[int, Look]:
        """Return what the workers did when they were asked last; ask again."""
        for member in self._members.values():
            if member.looking is None:
                member.looking = member.actor.look.options(concurrency_group=_ASIDE).remote()
        asked = {m.looking: m for m in self._members.values() if m.looking is not None}
        ready, _ = (
            self._ray.wait(list(asked), num_returns=len(asked), timeout=0) if asked else ([], 0)
        )
        for reference in ready:
            member = asked[reference]
            member.looking = None
            try:
                member.look, said = self._ray.get(reference)
                member.placed = True
                _repeat(said)
            except self._ray.exceptions.RayError:
                continue  # it is lost, and will be missed
        self._say_who_waits()
        return {n: m.look for n, m in self._members.items() if m.look.cell}

    def _say_who_waits(self) -> None:
        late = time.monotonic() - _LONG
        waiting = sum(not m.placed and m.since < late for m in self._members.values())
        if waiting and not self._said_who_waits:
            self._said_who_waits = True
            what = "GPU" if self._seats.gpus else "processor"
            who = f"{waiting} of {self._seats.count} workers"
            log.warning("%s have not been started by Ray yet: is no %s free?", who, what)

    def stop(self) -> None:
        """End all workers, whatever they do."""
        for member in self._members.values():
            self._ray.kill(member.actor)


def run_cells(
    ray: Any,
    seats: Seats,
    work: list[Chain],
    store: Store,
    settings: Settings,
    console: Console,
    fits: Callable[[Cell], bool] = lambda cell: True,
) -> Iterator[tuple[Record, bool]]:
    """Yield each cell's record when it is finished, and whether it was there already.

    Args:
        ray: Started or joined.
        seats: How many workers, and what each takes.
        work: The cells.
        store: Where records go.
        settings: How cells are computed.
        console: Where progress is shown.
        fits: Asked before each cell; after the first that does not fit none is begun.
    """
    settings.artifacts.check_writable()
    cache, cells, done = settings.artifacts, sum(len(chain.jobs) for chain in work), 0
    store = Store(store.root.absolute(), store.since)
    settings = replace(settings, device=seats.device)
    order = Order(settings, store, seats.threads, Path.cwd(), log.getEffectiveLevel())
    schedule = Schedule(
        work, lambda cell: cell.method.name == "none" or cache.has_erasure(cell.erase_key)
    )
    crew, more = Crew(ray, seats, order, console), True
    try:
        with crew_bars(console, cells) as show:
            while True:
                more = more and crew.give(schedule, fits)
                if not crew.working and not (more and schedule):
                    return
                for record, known in crew.finished(schedule):
                    done += 1
                    schedule.finish(record.cell)
                    yield record, known
                show(done, crew.looks())
    finally:
        crew.stop()


def _error(failure: Failure) -> BenchError:
    return _ERRORS.get(failure.exit_code, BenchError)(failure.reason)


def _repeat(said: Said) -> None:
    """Say what a worker said."""
    for level, line in said:
        log.log(level, "%s", line)
