"""One cell under its lock: read if it is there, else computed, written and pictured."""

from __future__ import annotations

import logging
from dataclasses import replace

from bench.core.errors import PluginError
from bench.engine.display import named
from bench.engine.runner import Runner
from bench.plan.plan import Job
from bench.store.files import write
from bench.store.record import Record
from bench.store.store import Store

log = logging.getLogger("bench")


def finish(runner: Runner, store: Store, job: Job) -> tuple[Record, bool]:
    """Return a cell's record, and whether it was there already.

    Processes may share a store: a cell is computed by the first and read by the second. A picture that
    could not be written is drawn when the cell is asked for again.
    """
    names, cache = named(job.cell), runner.settings.artifacts
    undrawn = cache.undrawn(store.picture(job.cell))
    with cache.lock(job.cell.id, names):
        found, known = store.get(job.cell), True
        if found is None or found.status == "failed":
            log.info("computing %s", names)
            found, known = _computed(runner, job, store), False
            log.info("written: %s", store.put(found))
            write(undrawn, b"")
        if undrawn.exists():
            _picture(runner, store, job, found)
            undrawn.unlink(missing_ok=True)
    return found, known


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


def _picture(runner: Runner, store: Store, job: Job, record: Record) -> None:
    """Save original | erased | attacked beside the record of a target cell."""
    from bench.report.pictures import save_grid

    if runner.settings.keep_images is False or record.status != "ok" or not record.rows:
        return
    path = store.picture(record.cell)
    try:
        save_grid(path, record, runner.samples(job, 12), job.task.measures)
    except PluginError as exc:
        log.warning("no picture %s: %s", path, exc)
