"""Back from cells to what asks for them: a request, and its options on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from bench.core.errors import BenchError, SpecError
from bench.core.types import Concept, World
from bench.plan.cell import IMAGES, NO_CONCEPT, Cell
from bench.plan.spec import Spec
from bench.plugins.registry import Ref, written_out
from bench.tasks.entries import Entry
from bench.tasks.lookup import find, task_names
from bench.tasks.protocol import ProtocolName, under
from bench.tasks.tasks import load_task

_SOURCE = re.compile(
    r" [0-9a-f]{8}( \(seeds: .*\))?$"
)  # what follows a prompt list's name in records


@dataclass(frozen=True, slots=True)
class Setting:
    """What of a task was asked for besides its name.

    Args:
        protocol: "paper" if its paper's prompts, judge and guidance were.
        judge: An evaluator in place of the task's own; empty if none.
        guidance: A scale in place of the task's own; ``None`` if none.
        prompts: The name of a prompt list of the user's own; empty if none.
        today: Whether the task, so asked for, is still what it was.
    """

    protocol: ProtocolName = "default"
    judge: str = ""
    guidance: float | None = None
    prompts: str = ""
    today: bool = True


def setting_of(cell: Cell, said: Mapping[str, str]) -> Setting:
    """Return what of a cell's task was asked for besides its name, by what its record says.

    Args:
        cell: Of a run.
        said: The protocol of its record.
    """
    if "prompts" not in said:
        return Setting()
    name = _SOURCE.sub("", said["prompts"])
    asked = name, said.get("judge", ""), said.get("guidance", "own")
    return _setting(cell.task, cell.world, cell.prompts, cell.task_digest, asked)


@lru_cache
def _setting(
    task: str, world: World, prompts: int, digest: str, asked: tuple[str, str, str]
) -> Setting:
    try:
        entry = find(task, world)
        found = _besides(entry, *asked)
    except BenchError:  # a task of somebody's own, or a judge that is not here
        return Setting()
    judge, scale, protocol = found.judge, found.guidance, found.protocol
    try:
        today = load_task(
            entry, world, judge=judge, guidance=scale, protocol=protocol, limit=prompts
        ).digest
    except BenchError:  # its prompts are not here
        return found
    return replace(found, today=bool(found.prompts) or today == digest)


def _besides(entry: Entry, prompts: str, judge: str, guidance: str) -> Setting:
    usual = {protocol: _usual(under(entry, protocol)) for protocol in _protocols(entry)}
    protocol: ProtocolName = "default"
    if usual.get("paper") == (prompts, judge, guidance) != usual["default"]:
        protocol = "paper"
    mine = usual[protocol]
    return Setting(
        protocol,
        _brief(judge) if judge not in {"", mine[1]} and entry.role == "target" else "",
        float(guidance) if guidance not in {"own", mine[2]} else None,
        prompts if prompts != mine[0] else "",
    )


def _protocols(entry: Entry) -> tuple[ProtocolName, ...]:
    return ("default", "paper") if entry.paper else ("default",)


def _usual(entry: Entry) -> tuple[str, str, str]:
    """Return the prompts, the judge and the guidance of a task, as records name them."""
    judge = written_out("evaluators", entry.measures[0].evaluator)
    return entry.asset or Path(entry.prompts).name, judge, entry.guidance


def _brief(judge: str) -> str:
    """Return a judge without the parameters that it has anyway."""
    ref = Ref.parse(judge)
    usual = Ref.parse(written_out("evaluators", Ref(ref.name))).params
    return str(Ref(ref.name, {k: v for k, v in ref.params.items() if usual.get(k) != v}))


def request_of(
    cell: Cell,
    assets: Mapping[str, Path] = {},
    *,
    attack: Ref | None = None,
    task: str = "",
    setting: Setting | None = None,
) -> Spec:
    """Return a request that has a cell among its own, with every parameter written out.

    Args:
        cell: Of a run.
        assets: Local paths of weights and data.
        attack: Another attack in place of the cell's.
        task: The file of a task of one's own.
        setting: What of the task was asked for besides its name; by default nothing.

    Raises:
        SpecError: The cell is of images that were made elsewhere or of a prompt list of the user's own,
            or its task is not known here.
    """
    setting = setting or Setting()
    if setting.prompts:
        raise SpecError(f"its prompts are the user's own: {setting.prompts}")
    if cell.method.name == IMAGES:
        raise SpecError("these images were made elsewhere: `bench judge` judges them again")
    entry = find(task or cell.task, cell.world)
    if attack and entry.role != "target":
        raise SpecError(f"{cell.task} is a {entry.role} task: only target tasks are attacked")
    erase: tuple[str, ...] = ()
    if entry.role != "target" and cell.concept != NO_CONCEPT:
        erase = (_asks_for(cell.concept, cell.world).name,)
    return Spec(
        cell.model,
        (_given(cell.method),),
        (attack or _given(cell.attack),),
        (task or cell.task,),
        cell.seed,
        cell.prompts,
        cell.dtype,
        assets,
        cell.world,
        judge=setting.judge,
        guidance=setting.guidance,
        protocol=setting.protocol,
        erase_seed=cell.erase_seed,
        erase=erase,
    )


def options(spec: Spec) -> list[str]:
    """Return the options of ``bench run`` that ask for a request.

    Raises:
        SpecError: One of its tasks has neither a name nor a file.
    """
    if own := [task for task in (*spec.tasks, *spec.erase) if not isinstance(task, str)]:
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
        *(("--erase", task) for task in spec.erase),
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
