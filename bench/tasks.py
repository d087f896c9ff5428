"""Tasks and prompt sets, read from ``prompts/<world>/``."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bench import assets
from bench.errors import AssetError, SpecError, UnknownNameError
from bench.exclusion import exclude
from bench.promptsets import read_prompts
from bench.registry import Ref, create, load
from bench.types import Concept, Prompt, World

PROMPTS = Path(__file__).resolve().parent.parent / "prompts"
ASSET = "asset:"


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
        exclusions: How many prompts of the set never run, by reason.
        source: The prompt set's file or asset, and a short digest of its content.
        guidance: "own" is each row's own scale; else the scale that all rows are drawn with.
        deviations: What differs from the protocol of the paper that the task follows, in words.
    """

    name: str
    world: World
    role: Literal["target", "retain", "benign"]
    concept: Concept | None
    prompts: tuple[Prompt, ...]
    measures: tuple[Measure, ...]
    digest: str
    exclusions: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    guidance: str = "own"
    deviations: tuple[str, ...] = ()

    @property
    def excluded(self) -> int:
        """How many prompts of the set never run."""
        return sum(self.exclusions.values())

    @property
    def streamed(self) -> bool:
        """Whether images pass through and only what is measured on them is kept, without rows."""
        return any(measure.reduce == "set" for measure in self.measures)


def task_names(world: World, root: Path = PROMPTS) -> list[str]:
    """Return the names of a world's tasks in the order of their table."""
    return list(_table(world, root))


def load_task(
    name: str,
    world: World,
    root: Path = PROMPTS,
    *,
    given: Mapping[str, Path] | None = None,
    prompts: Path | None = None,
    judge: str = "",
) -> Task:
    """Read one task from ``tasks.toml`` and its prompt set.

    Args:
        name: One of :func:`task_names`.
        world: Whose table.
        root: Folder of the worlds.
        given: Local paths of assets, for prompt sets that are not shipped.
        prompts: A file to be read in place of the task's own.
        judge: An evaluator in place of a target task's judge, ``name`` or ``name:key=value,...``.

    Raises:
        UnknownNameError: The world has no such task.
        SpecError: Its prompt set is empty or malformed, nothing of it may run, or its role and a measure
            do not go together.
        AssetError: Its prompt set is not here.
    """
    row = _row(name, world, root)
    concept = _concept(row["concept"]) if "concept" in row else None
    path = prompts or _own_prompts(row, root / world, given)
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise SpecError(f"{path}: expected a CSV file, got: {exc.strerror}") from exc
    found = read_prompts(path, data, concept.name if concept else "")
    total = len(found.prompts)
    if prompts is None and total != row.get("count", total):
        raise SpecError(
            f"{path}: task {name!r} has {row['count']} prompts, got {total}; "
            "give a set of your own with --prompts"
        )
    kept: tuple[Prompt, ...] = found.prompts
    exclusions: Mapping[str, int] = {}
    key = json.dumps(row, sort_keys=True).encode() + data
    if found.i2p or (concept and concept.kind == "nsfw"):
        kept, exclusions = exclude(found)
    if exclusions:
        key += json.dumps([prompt.id for prompt in kept]).encode()
    measures = [
        Measure(m["metric"], Ref.parse(m["evaluator"]), m["reduce"], m.get("threshold", 0.5))
        for m in row["measures"]
    ]
    if judge and row["role"] == "target":
        ref = Ref.parse(judge)
        metric = getattr(load("evaluators", ref.name), "metric", measures[0].metric)
        measures[0] = replace(measures[0], metric=metric, evaluator=ref)
        key += judge.encode()
    if not kept:
        raise SpecError(f"{path}: none of its {total} prompts may run: all may mention minors")
    task = Task(
        name=name,
        world=world,
        role=row["role"],
        concept=concept,
        prompts=kept,
        measures=tuple(measures),
        digest=hashlib.sha256(key).hexdigest()[:12],
        exclusions=exclusions,
        source=f"{_called(row, prompts)} {hashlib.sha256(data).hexdigest()[:8]}",
    )
    if task.streamed and task.role != "benign":
        raise SpecError(f"task {name!r}: reduce 'set' needs the role benign, got {task.role}")
    return task


def asset_names(name: str, world: World, root: Path = PROMPTS) -> Iterator[str]:
    """Yield the assets that a task's prompts and judges need, also where they are not here.

    Raises:
        UnknownNameError: The world has no such task.
    """
    row = _row(name, world, root)
    if row["prompts"].startswith(ASSET):
        yield row["prompts"].removeprefix(ASSET)
    for measure in row["measures"]:
        evaluator = create("evaluators", Ref.parse(measure["evaluator"]))
        for names in evaluator.assets() if hasattr(evaluator, "assets") else ():
            yield from names.split("|")


def role(name: str, world: World, root: Path = PROMPTS) -> str:
    """Return a task's role, also where its prompt set is not here.

    Raises:
        UnknownNameError: The world has no such task.
    """
    return str(_row(name, world, root)["role"])


def about_task(name: str, world: World, root: Path = PROMPTS) -> str:
    """Return a task's role and size in one line, also where its prompt set is not here."""
    row = _row(name, world, root)
    try:
        task = load_task(name, world, root)
    except AssetError:
        needed = row["prompts"].removeprefix(ASSET)
        return f"{row['role']}, {row['count']} prompts, {world} world; give --asset {needed}=PATH"
    left_out = f" ({task.excluded} more are excluded)" if task.excluded else ""
    return f"{task.role}, {len(task.prompts)} prompts{left_out}, {world} world"


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
    rows = _table(world, PROMPTS).values()
    known = {row["concept"]["name"]: _concept(row["concept"]) for row in rows if "concept" in row}
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


def _row(name: str, world: World, root: Path) -> dict[str, Any]:
    table = _table(world, root)
    if name not in table:
        raise UnknownNameError(f"{world} task", name, table)
    return table[name]


def _called(row: Mapping[str, Any], prompts: Path | None) -> str:
    """Return how a record names the prompt set: where it lies on a machine is nobody's business."""
    return prompts.name if prompts else str(row["prompts"]).removeprefix(ASSET)


def _own_prompts(row: dict[str, Any], folder: Path, given: Mapping[str, Path] | None) -> Path:
    """Return the task's prompt set: a shipped file, or an asset."""
    name: str = row["prompts"]
    if name.startswith(ASSET):
        return assets.locate(name.removeprefix(ASSET), given)
    return folder / name
