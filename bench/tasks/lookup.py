"""Tasks by name: which there are, where a name leads, and what a task says without reading its prompts."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from bench.core.announced import announced
from bench.core.errors import PluginLoadError, SpecError, UnknownNameError
from bench.core.paths import PROMPTS
from bench.core.types import Concept, World
from bench.tasks.entries import Entry, Role, shipped
from bench.tasks.own import GROUP, announced_task, read_task


def homes(task: str | Entry, root: Path = PROMPTS) -> dict[World, Entry]:
    """Return what a task says in each world that has it; a task of one's own has one.

    Args:
        task: The name of a shipped task, ``DISTRIBUTION/NAME`` of another distribution's, a file
            ``PATH.toml``, or what such a file says.
        root: Folder of the worlds.

    Raises:
        SpecError: The file is not there, or wrong.
        PluginLoadError: The other distribution's task is broken.
    """
    if isinstance(task, Entry):
        return {task.world: task}
    if task.endswith(".toml"):
        return homes(read_task(Path(task)))
    if "/" in task and task in announced(GROUP):
        return homes(announced_task(task))
    tables = {world: shipped(world, root) for world in get_args(World)}
    return {world: table[task] for world, table in tables.items() if task in table}


def find(task: str | Entry, world: World, root: Path = PROMPTS) -> Entry:
    """Return what a task says in a world; ``task`` as for :func:`homes`.

    Raises:
        UnknownNameError: There is no such task.
        SpecError: It is for another world.
    """
    found = homes(task, root)
    if world in found:
        return found[world]
    if own := next((entry for entry in found.values() if entry.origin), None):
        raise SpecError(
            f"{own.origin}: the task {own.name!r} is for the {own.world} world, but the {world} world is "
            f'used: write world = "{world}" there, or give another --model or --world'
        )
    known = [*shipped(world, root), *announced(GROUP)]
    raise UnknownNameError(f"{world} task", str(task), known, "; or a file of your own, PATH.toml")


def task_names(world: World, root: Path = PROMPTS) -> list[str]:
    """Return the names of a world's tasks: the shipped ones, then those of other distributions."""
    return [*shipped(world, root), *(name for name in announced(GROUP) if _may_be_of(name, world))]


def _may_be_of(name: str, world: World) -> bool:
    """Say whether another distribution's task is for a world; a broken one may be for each."""
    try:
        return world in homes(name)
    except PluginLoadError:
        return True


def home(task: str | Entry, world: World) -> World:
    """Return the world to take a task in where no model decides: this one, or the only one that has it."""
    found = homes(task)
    return next(iter(found)) if len(found) == 1 else world


def concept_of(name: str | Entry, world: World, root: Path = PROMPTS) -> Concept | None:
    """Return what a task's model should have forgotten; reads no prompts."""
    return find(name, world, root).concept


def role(name: str | Entry, world: World, root: Path = PROMPTS) -> Role:
    """Return a task's role, also where its prompt set is not here.

    Raises:
        UnknownNameError: The world has no such task.
    """
    return find(name, world, root).role


def name_of(task: str) -> str:
    """Return what records call a task; of a file that is the name that it says."""
    return read_task(Path(task)).name if task.endswith(".toml") else task
