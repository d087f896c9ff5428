"""Records of a task that asks for each of many subjects, so that it asks for what was erased, too.

Such a task has ``families`` in ``prompts/<world>/tasks.toml``; its subjects are the labels of its prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from bench.core.errors import BenchError
from bench.core.types import World
from bench.store.record import Record
from bench.tasks.lookup import find
from bench.tasks.tasks import load_task


@dataclass(frozen=True)
class Asked:
    """What a task's prompts ask for.

    Args:
        digest: Of the prompts.
        subjects: By the prompt's id.
        families: Subjects that are near each other.
    """

    digest: str
    subjects: Mapping[str, str]
    families: tuple[frozenset[str], ...]


def asked(record: Record) -> Asked | None:
    """Return what a record's prompts ask for; ``None`` of other tasks, and of prompts that are not here."""
    cell = record.cell
    found = _of_task(cell.task, cell.world, cell.prompts)
    if found is None or found.digest != cell.task_digest or record.status != "ok":
        return None
    same = [row.id for row in record.rows] == list(found.subjects)[: cell.prompts]
    return found if same else None


@cache
def _of_task(task: str, world: World, prompts: int) -> Asked | None:
    try:
        says = find(task, world).says
        loaded = load_task(task, world, limit=prompts) if "families" in says else None
    except BenchError:  # a task of somebody's own, or one that cannot be read here
        return None
    if loaded is None:
        return None
    families = tuple(map(frozenset, says["families"]))
    return Asked(loaded.digest, {p.id: p.label for p in loaded.prompts}, families)
