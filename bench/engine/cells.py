"""One cell under its lock: read if it is there, else computed, written and pictured."""

from __future__ import annotations

import logging
from dataclasses import replace

from bench.engine.display import named
from bench.engine.runner import Runner
from bench.errors import PluginError
from bench.plan.plan import Job
from bench.store.record import Record
from bench.store.store import Store

log = logging.getLogger("bench")


def finish(runner: Runner, store: Store, job: Job) -> tuple[Record, bool]:
    """Return a cell's record, and whether it was there already.

    Processes may share a store: a cell is computed by the first and read by the second.
    """
    names = named(job.cell)
    with runner.settings.artifacts.lock(job.cell.id, names):
        found = store.get(job.cell)
        if found is not None and found.status != "failed":
            return found, True
        log.info("computing %s", names)
        found = _computed(runner, job, store)
        log.info("written: %s", store.put(found))
        _picture(runner, store, job, found)
    return found, False


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
    path = store.path(record.cell).with_suffix(".png")
    try:
        save_grid(path, record, runner.samples(job, 12), job.task.measures)
    except PluginError as exc:
        log.warning("no picture %s: %s", path, exc)
