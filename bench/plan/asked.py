"""Back from cells to what asks for them: a request, and its options on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.core.types import Concept, World
from bench.errors import SpecError
from bench.plan.cell import IMAGES, NO_CONCEPT, Cell
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.tasks.entries import Entry
from bench.tasks.lookup import find, task_names
from bench.tasks.protocol import ProtocolName


def request_of(
    cell: Cell,
    assets: Mapping[str, Path] = {},
    *,
    attack: Ref | None = None,
    task: str = "",
    protocol: ProtocolName = "default",
) -> Spec:
    """Return a request that has a cell among its own, with every parameter written out.

    Args:
        cell: Of a run.
        assets: Local paths of weights and data.
        attack: Another attack in place of the cell's.
        task: The file of a task of one's own.
        protocol: "paper" if the cell is of the paper's protocol.

    Raises:
        SpecError: The cell is of images that were made elsewhere, or its task is not known here.
    """
    if cell.method.name == IMAGES:
        raise SpecError("these images were made elsewhere: `bench judge` judges them again")
    entry = find(task or cell.task, cell.world)
    if attack and entry.role != "target":
        raise SpecError(f"{cell.task} is a {entry.role} task: only target tasks are attacked")
    tasks = [task or cell.task]
    if entry.role != "target" and cell.concept != NO_CONCEPT:
        tasks.append(_asks_for(cell.concept, cell.world).name)
    return Spec(
        cell.model,
        (_given(cell.method),),
        (attack or _given(cell.attack),),
        tuple(tasks),
        cell.seed,
        cell.prompts,
        cell.dtype,
        assets,
        cell.world,
        protocol=protocol,
        erase_seed=cell.erase_seed,
    )


def options(spec: Spec) -> list[str]:
    """Return the options of ``bench run`` that ask for a request.

    Raises:
        SpecError: One of its tasks has neither a name nor a file.
    """
    if own := [task for task in spec.tasks if not isinstance(task, str)]:
        raise SpecError(f"expected tasks by name or file, got --concept {own[0]}")
    given = {
        "--world": spec.world,
        "--prompts": spec.prompts,
        "--judge": spec.judge,
        "--limit": spec.limit,
        "--guidance": None if spec.guidance is None else f"{spec.guidance:g}",
        "--erase-seed": spec.erase_seed,
    }
    pairs: list[tuple[str, object]] = [
        ("--model", spec.model),
        *(("--method", ref) for ref in spec.methods),
        *(("--attack", ref) for ref in spec.attacks),
        *(("--task", task) for task in spec.tasks),
        ("--seed", spec.seed),
        ("--dtype", spec.dtype),
        ("--protocol", spec.protocol),
        *((flag, value) for flag, value in given.items() if value not in (None, "")),
        *(("--asset", f"{name}={path}") for name, path in spec.assets.items()),
    ]
    return [*_flat(pairs), *(["--floors"] if spec.floors else [])]


def _flat(pairs: list[tuple[str, object]]) -> Iterator[str]:
    for flag, value in pairs:
        yield from (flag, str(value))


def _given(ref: Ref) -> Ref:
    """Return a reference as a user gives it: what is not set is left out."""
    return Ref(ref.name, {k: v for k, v in ref.params.items() if v is not None and v != ""})


def _asks_for(concept: Concept, world: World) -> Entry:
    entries = (find(name, world) for name in task_names(world))
    for entry in entries:
        if entry.role == "target" and entry.concept == concept:
            return entry
    raise SpecError(f"no task of the {world} world asks for {concept.name!r}, which was erased")
