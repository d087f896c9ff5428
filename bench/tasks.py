"""Tasks and prompt sets, read from ``prompts/<world>/``."""

from __future__ import annotations

import csv
import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.errors import SpecError, UnknownNameError
from bench.registry import Ref, create
from bench.types import Concept, Prompt, World

PROMPTS = Path(__file__).resolve().parent.parent / "prompts"


@dataclass(frozen=True, slots=True)
class Measure:
    """One number a task yields: whose scores, and how they become that number.

    ``reduce``: "rate" is the share of scores of at least ``threshold``; "mean" their mean;
    "set" the single score of an evaluator that looks at all images together, in benign tasks only.
    """

    metric: str
    evaluator: Ref
    reduce: Literal["rate", "mean", "set"]
    threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class Task:
    """Prompts with one role, and what is measured on their images.

    Args:
        role: "target": the prompts ask for ``concept``, and the first measure is the judge that
            decides whether it is there. "retain" and "benign": the prompts ask for other things,
            and are run on models that were erased for another task's concept.
    """

    name: str
    world: World
    role: Literal["target", "retain", "benign"]
    concept: Concept | None
    prompts: tuple[Prompt, ...]
    measures: tuple[Measure, ...]
    digest: str

    @property
    def streamed(self) -> bool:
        """Whether images pass through and only what is measured on them is kept, without rows."""
        return any(measure.reduce == "set" for measure in self.measures)


def task_names(world: World, root: Path = PROMPTS) -> list[str]:
    """Return the names of a world's tasks in the order of their table."""
    return list(_table(world, root))


def load_task(name: str, world: World, root: Path = PROMPTS) -> Task:
    """Read one task from ``tasks.toml`` and its prompt set.

    Raises:
        UnknownNameError: The world has no such task.
        SpecError: Its prompt set is empty or malformed, or its role and a measure do not go together.
    """
    table = _table(world, root)
    if name not in table:
        raise UnknownNameError(f"{world} task", name, table)
    row: dict[str, Any] = table[name]
    path = root / world / row["prompts"]
    data = path.read_bytes()
    concept = _concept(row["concept"]) if "concept" in row else None
    task = Task(
        name=name,
        world=world,
        role=row["role"],
        concept=concept,
        prompts=tuple(_read_prompts(path, data, concept)),
        measures=tuple(
            Measure(m["metric"], Ref.parse(m["evaluator"]), m["reduce"], m.get("threshold", 0.5))
            for m in row["measures"]
        ),
        digest=hashlib.sha256(json.dumps(row, sort_keys=True).encode() + data).hexdigest()[:12],
    )
    if task.streamed and task.role != "benign":
        raise SpecError(f"task {name!r}: reduce 'set' needs the role benign, got {task.role}")
    return task


def asset_names(name: str, world: World, root: Path = PROMPTS) -> Iterator[str]:
    """Yield the assets that a task's prompts and judges need, also where they are not here.

    Raises:
        UnknownNameError: The world has no such task.
    """
    table = _table(world, root)
    if name not in table:
        raise UnknownNameError(f"{world} task", name, table)
    kind, _, asset = table[name]["prompts"].partition(":")
    if kind == "asset":
        yield asset
    for measure in table[name]["measures"]:
        evaluator = create("evaluators", Ref.parse(measure["evaluator"]))
        yield from evaluator.assets() if hasattr(evaluator, "assets") else ()


def find_concept(name: str, world: World, kind: str = "", anchor: str = "") -> Concept:
    """Return a task's concept by name, or a new one if its kind is given.

    Raises:
        UnknownNameError: No task has it and no kind is given.
        SpecError: The kind is none of nsfw, style, object.
    """
    if kind:
        if kind not in {"nsfw", "style", "object"}:
            raise SpecError(f"--kind: expected nsfw, style or object, got {kind!r}")
        return Concept(name, kind, anchor)  # type: ignore[arg-type]
    known = {}
    for task in (load_task(n, world) for n in task_names(world)):
        if task.concept:
            known[task.concept.name] = task.concept
    if name not in known:
        raise UnknownNameError("concept", name, known, "; give --kind for your own")
    found = known[name]
    return replace(found, anchor=anchor) if anchor else found


def _table(world: World, root: Path) -> dict[str, Any]:
    path = root / world / "tasks.toml"
    if not path.exists():
        return {}
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _concept(row: dict[str, Any]) -> Concept:
    return Concept(**{**row, "terms": tuple(row.get("terms", ()))})


def _read_prompts(path: Path, data: bytes, concept: Concept | None) -> list[Prompt]:
    prompts: dict[str, Prompt] = {}
    for line, row in enumerate(csv.DictReader(data.decode().splitlines()), start=2):
        try:
            prompt = Prompt(
                row["id"],
                row["text"],
                int(row["seed"]),
                float(row["guidance"]),
                row.get("label") or (concept.name if concept else ""),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise SpecError(f"{path}:{line}: expected id,text,seed,guidance, got {row}") from exc
        if prompt.id in prompts:
            raise SpecError(f"{path}:{line}: the id {prompt.id!r} is there twice")
        prompts[prompt.id] = prompt
    if not prompts:
        raise SpecError(f"{path}: the prompt set is empty")
    return list(prompts.values())
