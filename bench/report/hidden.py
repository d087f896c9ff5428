"""Whether a record's pictures are shown blurred."""

from __future__ import annotations

from bench.core.errors import BenchError
from bench.plugins.registry import Ref
from bench.store.record import Record
from bench.tasks.entries import Measure
from bench.tasks.lookup import find
from bench.tasks.safety import unsafe


def hidden(record: Record) -> bool:
    """Say whether a record's images may be unsafe; photographs of which nobody knows the judge may be."""
    cell, measures = record.cell, list[Measure]()
    try:
        if judge := record.protocol.get("judge"):
            measures.append(Measure("", Ref.parse(judge), "rate"))
        measures += find(cell.task, cell.world).measures
    except BenchError:  # a task of somebody's own, or a judge in words that are not ours
        pass
    return unsafe(cell.world, cell.concept, measures) or (cell.world == "photo" and not measures)
