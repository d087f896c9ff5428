"""The command that computes a record again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from bench.core.digest import digest
from bench.core.errors import BenchError
from bench.core.types import Concept, World
from bench.plan.asked import Setting, setting_of
from bench.plan.cell import IMAGES, TRAIN, Cell
from bench.plugins.registry import Kind, Ref, resolved
from bench.sources.catalog import MODELS, model_info, split
from bench.store.record import Record
from bench.tasks.lookup import concept_of, role, task_names


def command(record: Record) -> str:
    """Return the command that computes a record again; parameters are said where they are no defaults."""
    return shlex.join(_words(record.cell, setting_of(record.cell, record.protocol)))


def remarks(record: Record) -> tuple[str, ...]:
    """Say what the command needs that only its user has: without it, it makes no record of this cell."""
    return tuple(_needed(record.cell, setting_of(record.cell, record.protocol)))


def _needed(cell: Cell, setting: Setting) -> Iterator[str]:
    if cell.method.name == IMAGES:
        yield "FOLDER is the user's folder of images, which the record does not hold"
    if not _known(cell.task, cell.world):
        yield (
            f"FILE.toml stands for the file of the user's own task {cell.task!r}, which must be the same "
            f"(set {cell.task_digest})"
        )
    if setting.prompts:
        yield f"FILE.csv stands for the user's own prompts, {setting.prompts} (set {cell.task_digest})"
    if not setting.today:
        yield (
            f"the task {cell.task!r} has changed, or its judge was asked for with other words: the command "
            f"makes another cell (this one's set is {cell.task_digest})"
        )
    if _is_own(cell.model):
        yield (
            f"{cell.model} is the user's own model, or one that was kept in the cache, which may be "
            f"deleted: it must be there, and be the same (revision {cell.revision})"
        )
    for kind, ref in (("method", cell.method), ("attack", cell.attack)):
        if ref.files:
            yield f"the {kind} {ref.name} reads files of the user's own: {', '.join(ref.files)}"


@lru_cache
def _known(task: str, world: World) -> bool:
    return task in task_names(world)


def _words(cell: Cell, setting: Setting) -> Iterator[str]:
    if cell.method.name == IMAGES:
        label = str(cell.method.params.get("label", ""))
        yield from ("bench", "judge", "FOLDER", "--task", cell.task, "--world", cell.world)
        yield from ("--label", label) if label else ()
        yield from ("--limit", str(cell.prompts))
        yield from _of_setting(setting)
        return
    yield from ("bench", "run", "--method", _spelled("methods", cell))
    yield from ("--attack", _spelled("attacks", cell))
    erased = _erased(cell.task, cell.concept, cell.world)
    yield from ("--erase", erased) if erased else ()
    yield from ("--task", cell.task if _known(cell.task, cell.world) else "FILE.toml")
    yield from ("--limit", str(cell.prompts))
    yield from ("--model", cell.model) if cell.model != "emoji-sd" else ()
    yield from ("--world", cell.world) if _home(cell.model) != cell.world else ()
    yield from ("--seed", str(cell.seed)) if cell.seed else ()
    yield from ("--erase-seed", str(cell.erase_seed)) if cell.erase_seed is not None else ()
    yield from ("--dtype", cell.dtype) if cell.dtype != TRAIN or cell.world == "photo" else ()
    yield from _of_setting(setting)


def _of_setting(setting: Setting) -> Iterator[str]:
    yield from ("--protocol", setting.protocol) if setting.protocol != "default" else ()
    yield from ("--judge", setting.judge) if setting.judge else ()
    yield from ("--prompts", "FILE.csv") if setting.prompts else ()
    yield from ("--guidance", f"{setting.guidance:g}") if setting.guidance is not None else ()


@lru_cache
def _erased(task: str, concept: Concept, world: World) -> str:
    """Return the task whose concept is erased where a cell's own erases nothing; empty if none is known."""
    try:
        if concept.name and role(task, world) != "target":
            return next((n for n in task_names(world) if concept_of(n, world) == concept), "")
    except BenchError:  # a task of somebody's own
        pass
    return ""


def catalogued(model: str) -> bool:
    """Say whether a model is one of the catalogue, with whatever settings."""
    return split(model)[0] in MODELS


@lru_cache
def _is_own(model: str) -> bool:
    """Say whether a model is a file or a folder, so that nobody else need have it."""
    if catalogued(model):
        return False
    try:
        return not model_info(model).source.startswith("hub:")
    except BenchError:  # it is not here
        return True


@lru_cache
def _home(model: str) -> str:
    try:
        return model_info(model).world
    except BenchError:  # a model that is not here
        return ""


def _spelled(kind: Kind, cell: Cell) -> str:
    """Return a plug-in as the command line takes it."""
    ref = cell.method if kind == "methods" else cell.attack
    usual = _usual(kind, ref.name, cell.concept, cell.model, cell.world)
    said = {k: v for k, v in ref.params.items() if k not in usual or digest(usual[k]) != digest(v)}
    return str(Ref(ref.name, {k: v for k, v in said.items() if v is not None and v != ""}))


@lru_cache
def _usual(kind: Kind, name: str, concept: Concept, model: str, world: World) -> Mapping[str, Any]:
    """Return the parameters that a plug-in has if nobody says otherwise; none if it cannot be asked."""
    try:
        defaults = model_info(model, world).defaults
        return resolved(kind, Ref(name), concept, world, defaults).params
    except BenchError:  # a plug-in that is not here, or that takes a file
        return {}
