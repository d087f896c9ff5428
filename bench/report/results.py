"""Records as a table of pandas, for a script or a notebook."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.types import Cost
from bench.plugins.registry import Ref
from bench.report.tables import judged
from bench.store.metrics import Measurement, complement
from bench.store.record import Record
from bench.store.store import Store

if TYPE_CHECKING:
    import pandas

log = logging.getLogger("bench")


def load_results(folder: str | Path = "results/local") -> pandas.DataFrame:
    """Return the records of a folder, one line per cell, in the order of their names.

    Columns:

    - ``id``: the cell's, as the index.
    - ``world``, ``model``, ``dtype``, ``concept``, ``kind``, ``task``, ``method``, ``attack``, ``seed``,
      ``erase_seed``, ``prompts``; ``space``: what the attack changes; ``method_params``, ``attack_params``:
      every parameter, ``name=value,...``.
    - ``status``: "ok", "skipped" or "failed", and ``reason``.
    - ``cer``, ``cer_low``, ``cer_high``, ``cer_n``, ``cer_unscored``: the concept erasing rate with its
      95 % Wilson interval, the prompts that it rests on, and those that could not be scored. ``judge`` is
      the name of the success rate that it is the complement of. Empty for tasks that ask for no concept.
    - the same five for each further measure: ``accuracy``, ``fid``, ...
    - ``images``, ``forward``, ``backward``, ``text_forward``, ``text_backward``, ``attack_seconds``: what
      the attack spent on all prompts, as in :class:`bench.Cost`; 0 without an attack.
    - ``seconds``: wall clock of the cell; ``erase_seconds``: of its erasure, also where another cell
      paid for it.

    A record that cannot be used is left out, and a warning of the logger "bench" names it.

    Args:
        folder: Where the records are.

    Raises:
        StoreError: There is no such folder.
    """
    import pandas

    records, passed_over = Store(Path(folder)).load()
    for line in passed_over:
        log.warning("%s", line)
    frame = pandas.DataFrame([dict(_line(record)) for record in records])
    return frame.set_index("id") if records else frame


def _line(r: Record) -> Iterator[tuple[str, Any]]:
    cell = r.cell
    yield "id", cell.id
    yield from ((name, getattr(cell, name)) for name in ("world", "model", "dtype"))
    yield from (("concept", cell.concept.name), ("kind", cell.concept.kind), ("task", cell.task))
    yield from (("method", cell.method.name), ("attack", cell.attack.name), ("space", r.space))
    yield from (("seed", cell.seed), ("erase_seed", cell.erased_with), ("prompts", cell.prompts))
    yield from (("method_params", _params(cell.method)), ("attack_params", _params(cell.attack)))
    yield from (("status", r.status), ("reason", r.reason))
    success = judged(r)
    yield "judge", success or ""
    for name, measurement in r.measurements.items():
        if name == success:
            yield from _measured("cer", complement(measurement))
        else:
            yield from _measured(measurement.called(name), measurement)
    spent = asdict(sum((row.cost for row in r.rows), Cost()))
    yield "attack_seconds", spent.pop("seconds")
    yield from spent.items()
    yield "seconds", sum(r.seconds.values())
    yield "erase_seconds", r.erasure.get("seconds")


def _measured(name: str, m: Measurement) -> Iterator[tuple[str, Any]]:
    yield name, m.value
    numbers = {"low": m.low, "high": m.high, "n": m.n, "unscored": m.unscored}
    yield from ((f"{name}_{key}", value) for key, value in numbers.items())


def _params(ref: Ref) -> str:
    return str(ref).partition(":")[2]
