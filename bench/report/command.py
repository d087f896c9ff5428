"""The command that computes a record again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from bench.core.digest import digest
from bench.errors import BenchError
from bench.plan.cell import IMAGES, TRAIN, Cell
from bench.plugins.registry import Kind, Ref, resolved
from bench.sources.catalog import model_info
from bench.store.record import Record
from bench.tasks.lookup import concept_of, role, task_names


def command(record: Record) -> str:
    """Return the command that computes a record again; parameters are said where they are no defaults."""
    return shlex.join(_words(record.cell))


def _words(cell: Cell) -> Iterator[str]:
    if cell.method.name == IMAGES:
        label = str(cell.method.params.get("label", ""))
        yield from ("bench", "judge", "FOLDER", "--task", cell.task, "--world", cell.world)
        yield from ("--label", label) if label else ()
        yield from ("--limit", str(cell.prompts))
        return
    yield from ("bench", "run", "--method", _spelled("methods", cell))
    yield from ("--attack", _spelled("attacks", cell))
    yield from (word for task in _tasks(cell) for word in ("--task", task))
    yield from ("--limit", str(cell.prompts))
    yield from ("--model", cell.model) if cell.model != "emoji-sd" else ()
    yield from ("--world", cell.world) if _home(cell.model) != cell.world else ()
    yield from ("--seed", str(cell.seed)) if cell.seed else ()
    yield from ("--erase-seed", str(cell.erase_seed)) if cell.erase_seed is not None else ()
    yield from ("--dtype", cell.dtype) if cell.dtype != TRAIN else ()


def _tasks(cell: Cell) -> Iterator[str]:
    """Yield the cell's task, and first the one whose concept is erased where its own erases nothing."""
    try:
        if cell.concept.name and role(cell.task, cell.world) != "target":
            names = task_names(cell.world)
            yield from [n for n in names if concept_of(n, cell.world) == cell.concept][:1]
    except BenchError:  # a task of somebody's own
        pass
    yield cell.task


def _home(model: str) -> str:
    try:
        return model_info(model).world
    except BenchError:  # a model that is not here
        return ""


def _spelled(kind: Kind, cell: Cell) -> str:
    """Return a plug-in as the command line takes it."""
    ref = cell.method if kind == "methods" else cell.attack
    try:
        defaults = model_info(cell.model, cell.world).defaults
        usual = resolved(kind, Ref(ref.name), cell.concept, cell.world, defaults).params
    except BenchError:  # a plug-in that is not here, or that takes a file
        usual = {}
    said = {k: v for k, v in ref.params.items() if k not in usual or digest(usual[k]) != digest(v)}
    return str(Ref(ref.name, {k: v for k, v in said.items() if v is not None and v != ""}))
