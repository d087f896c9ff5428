"""Tasks and prompt sets, read from ``prompts/<world>/``."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bench.core.paths import PROMPTS
from bench.core.types import Concept, Prompt, World
from bench.errors import AssetError, SpecError, UnknownNameError
from bench.plugins.registry import Ref, create
from bench.sources import assets
from bench.tasks.exclusion import exclude
from bench.tasks.promptsets import PromptSet, read_prompts, shown, split_column

ASSET = "asset:"
KINDS = ("nsfw", "style", "object")

ProtocolName = Literal["default", "paper"]
"""Whose prompts, judge and guidance a task takes: what is shipped, or what its paper took."""


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
        paper: The paper whose protocol the task follows; empty if none.
        deviations: What differs from that protocol, in words; empty with the protocol "paper".
        rows: Ids of all rows of the set in its order, those that never run included.
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
    paper: str = ""
    deviations: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    @property
    def judge(self) -> Measure:
        """The measure that decides success: a target task's first one."""
        return self.measures[0]

    @property
    def excluded(self) -> int:
        """How many prompts of the set never run."""
        return sum(self.exclusions.values())

    @property
    def left_out(self) -> str:
        """How many prompts never run for which reason, in words."""
        return ", ".join(f"{n} {reason}" for reason, n in self.exclusions.items())

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
    guidance: float | None = None,
    protocol: ProtocolName = "default",
    seed: int = 0,
) -> Task:
    """Read one task from ``tasks.toml`` and its prompt set.

    Args:
        name: One of :func:`task_names`.
        world: Whose table.
        root: Folder of the worlds.
        given: Local paths of assets, for prompt sets that are not shipped.
        prompts: A file, or ``FILE:COLUMN``, to be read in place of the task's own.
        judge: An evaluator in place of a target task's judge, ``name`` or ``name:key=value,...``.
        guidance: Scale for all rows in place of each row's own.
        protocol: "paper" takes the prompts, the judge and the guidance of the task's paper.
        seed: What a row's number is added to where the set has no seeds.

    Raises:
        UnknownNameError: The world has no such task.
        SpecError: Its prompt set is empty or malformed, nothing of it may run, it states no paper's
            protocol, or its role and a measure do not go together.
        AssetError: Its prompt set is not here.
    """
    row, paper = _row(name, world, root, protocol)
    if guidance is not None:
        row["guidance"] = float(guidance)
    concept = concept_of(name, world, root)
    path, column = split_column(prompts) if prompts else (_own(row, root / world, given), "")
    own = ":".join(filter(None, (path.name, column))) if prompts else ""
    data = _read(path)
    found = read_prompts(path, data, concept.name if concept else "", column=column, seed=seed)
    total = len(found.prompts)
    if prompts is None and total != row.get("count", total):
        raise SpecError(
            f"{path}: task {name!r} has {row['count']} prompts, got {total}; "
            "give a set of your own with --prompts"
        )
    target = concept if row["role"] == "target" else None
    nsfw = concept is not None and concept.kind == "nsfw"
    kept, exclusions = exclude(found, minors=found.i2p or nsfw, concept=target)
    if not kept:
        raise SpecError(f"{path}: none of its {total} prompts may run: {_why(found, exclusions)}")
    key = json.dumps(row, sort_keys=True).encode() + data + column.encode()
    if exclusions:
        key += json.dumps([prompt.id for prompt in kept]).encode()
    measures = _measures(row)
    if judge and row["role"] == "target":
        measures = (_judge(judge, measures[0]), *measures[1:])
        key += judge.encode()
    task = Task(
        name=name,
        world=world,
        role=row["role"],
        concept=concept,
        prompts=tuple(_prompt(prompt, target, row.get("guidance")) for prompt in kept),
        measures=measures,
        digest=hashlib.sha256(key).hexdigest()[:12],
        exclusions=exclusions,
        source=_source(own or row["prompts"], data, None if found.seeded else seed),
        guidance=_scale(row),
        paper=paper.get("about", ""),
        rows=tuple(prompt.id for prompt in found.prompts),
    )
    if task.streamed and task.role != "benign":
        raise SpecError(f"task {name!r}: reduce 'set' needs the role benign, got {task.role}")
    return replace(task, deviations=tuple(_deviations(task, own, row, paper)))


def needs(
    name: str,
    world: World,
    root: Path = PROMPTS,
    *,
    prompts: Path | None = None,
    judge: str = "",
    protocol: ProtocolName = "default",
) -> Iterator[str]:
    """Yield the assets that a task's prompts and judges need; "a|b" is one of the two.

    Raises:
        UnknownNameError: The world has no such task.
        SpecError: It states no paper's protocol.
    """
    row, _ = _row(name, world, root, protocol)
    if row["prompts"].startswith(ASSET) and not prompts:
        yield row["prompts"].removeprefix(ASSET)
    refs = [Ref.parse(measure["evaluator"]) for measure in row["measures"]]
    if judge and row["role"] == "target":
        refs[0] = Ref.parse(judge)
    for ref in refs:
        evaluator = create("evaluators", ref)
        yield from evaluator.assets() if hasattr(evaluator, "assets") else ()


def concept_of(name: str, world: World, root: Path = PROMPTS) -> Concept | None:
    """Return what a task's model should have forgotten; reads no prompts."""
    row, _ = _row(name, world, root)
    return _concept(row["concept"]) if "concept" in row else None


def role(name: str, world: World, root: Path = PROMPTS) -> str:
    """Return a task's role, also where its prompt set is not here.

    Raises:
        UnknownNameError: The world has no such task.
    """
    return str(_row(name, world, root)[0]["role"])


def about_task(name: str, world: World, root: Path = PROMPTS) -> str:
    """Return a task's role and size in one line, also where its prompt set is not here."""
    row, _ = _row(name, world, root)
    try:
        task = load_task(name, world, root)
    except AssetError:
        needed = row["prompts"].removeprefix(ASSET)
        return f"{row['role']}, {row['count']} prompts, {world} world; give --asset {needed}=PATH"
    left_out = f" ({task.excluded} more are excluded)" if task.excluded else ""
    return f"{task.role}, {len(task.prompts)} prompts{left_out}, {world} world"


def find_concept(name: str, world: World, kind: str = "", anchor: str = "") -> Concept:
    """Return a task's concept by name, or a new one if none has it and its kind is given.

    Raises:
        UnknownNameError: No task has it and no kind is given.
        SpecError: The kind is none of nsfw, style, object, or the name is a list.
    """
    if not name.strip():
        raise SpecError("--concept: expected a name, got an empty text")
    if kind and kind not in KINDS:
        raise SpecError(f"--kind: expected nsfw, style or object, got {kind!r}")
    given = name
    name, *others = (part.strip() for part in re.split(r"[,;|\n]", name))
    if others:
        again = " ".join(f"--concept {shlex.quote(part)}" for part in (name, *others) if part)
        raise SpecError(f"--concept: expected one concept, got the list {given!r}: give {again}")
    rows = _table(world, PROMPTS).values()
    known = {row["concept"]["name"]: _concept(row["concept"]) for row in rows if "concept" in row}
    if name not in known and not kind:
        raise UnknownNameError("concept", name, known, "; give --kind for your own")
    own = Concept(name, kind or "object")  # type: ignore[arg-type]
    found = known.get(name, own)
    found = own if kind and kind != found.kind else found
    return replace(found, anchor=anchor) if anchor else found


def find_concepts(
    names: Sequence[str], world: World, kinds: Sequence[str] = (), anchors: Sequence[str] = ()
) -> Concept:
    """Return one concept, or several as the terms of one, each with its own anchor.

    Args:
        names: Names of tasks' concepts, or of new ones.
        world: Whose tasks.
        kinds: Of new concepts: none, one for all, or one each.
        anchors: What they are mapped to instead of the tasks' anchors: none, one for all, or one each.

    Raises:
        UnknownNameError: No task has a concept of that name, and no kind is given.
        SpecError: They are of more than one kind, or not as many as kinds or anchors.
    """
    each = [
        find_concept(name, world, kind, anchor)
        for name, kind, anchor in zip(
            names, _each("--kind", kinds, names), _each("--anchor", anchors, names), strict=True
        )
    ]
    one, *others = dict.fromkeys(each)
    if not others:
        return one
    if other := next((c for c in others if c.kind != one.kind), None):
        raise SpecError(
            f"several concepts: expected one kind, got {one.name!r} ({one.kind}) and {other.name!r} "
            f"({other.kind}): erase one, and the other from the model that --export writes"
        )
    return Concept(
        ", ".join(concept.name for concept in (one, *others)),
        one.kind,
        _joined([anchor for concept in (one, *others) for anchor in concept.anchors]),
        tuple(phrase for concept in (one, *others) for phrase in concept.phrases),
    )


def _each(option: str, values: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    if len(values) not in {0, 1, len(names)}:
        raise SpecError(
            f"{option}: expected it once for all concepts or once for each of the {len(names)}, "
            f"got it {len(values)} times"
        )
    return values if len(values) == len(names) else [*values, ""][:1] * len(names)


def _joined(anchors: Sequence[str]) -> str:
    return anchors[0] if len(set(anchors)) == 1 else "; ".join(anchors)


def _table(world: World, root: Path) -> dict[str, Any]:
    path = root / world / "tasks.toml"
    if not path.exists():
        return {}
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _concept(row: dict[str, Any]) -> Concept:
    return Concept(**{**row, "terms": tuple(row.get("terms", ()))})


def _row(
    name: str, world: World, root: Path, protocol: ProtocolName = "default"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a task says under a protocol, and what it says under its paper's, if it has one."""
    table = _table(world, root)
    if name not in table:
        raise UnknownNameError(f"{world} task", name, table)
    row = dict(table[name])
    changes = row.pop("paper", None)
    if changes is None and protocol == "paper":
        have = ", ".join(task for task, other in table.items() if "paper" in other) or "none"
        raise SpecError(
            f"--protocol paper: task {name!r} follows no paper; of the {world} world these do: {have}"
        )
    paper = {} if changes is None else row | changes
    if protocol == "paper":
        row = {key: value for key, value in paper.items() if key != "about"}
    return row, paper


def _measures(row: Mapping[str, Any]) -> tuple[Measure, ...]:
    return tuple(
        Measure(m["metric"], Ref.parse(m["evaluator"]), m["reduce"], m.get("threshold", 0.5))
        for m in row["measures"]
    )


def _judge(text: str, own: Measure) -> Measure:
    """Return the measure of a judge that the user gave."""
    ref = Ref.parse(text)
    judge = create("evaluators", ref)
    if judge.scope != "image":
        raise SpecError(
            f"--judge: expected an evaluator of single images, got {ref.name!r}, which looks at all "
            "images together"
        )
    return replace(own, metric=getattr(judge, "metric", own.metric), evaluator=ref)


def _prompt(prompt: Prompt, target: Concept | None, guidance: float | None) -> Prompt:
    """Return a row as the task draws it and its judge looks for it."""
    if target:
        prompt = replace(prompt, label=target.name)
    return prompt if guidance is None else replace(prompt, guidance=float(guidance))


def _why(found: PromptSet, exclusions: Mapping[str, int]) -> str:
    """Return why nothing of a set runs."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in exclusions.items())
    if not found.labels:
        return reasons
    labels = list(dict.fromkeys(prompt.label for prompt in found.prompts))
    few = ", ".join(map(shown, labels[:8])) + (", ..." if len(labels) > 8 else "")
    return (
        f"{reasons}; its column {shown(found.labels)} says {few}; without that column all rows count "
        "as the task's concept"
    )


def _deviations(
    task: Task, own: str, row: Mapping[str, Any], paper: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what differs from the paper's protocol; ``own`` is a prompt file of the user's."""
    if not paper:
        return
    if own or row["prompts"] != paper["prompts"]:
        yield f"prompts {own or row['prompts']} instead of {paper['prompts'].removeprefix(ASSET)}"
    for mine, theirs in zip(task.measures, _measures(paper), strict=True):
        if create("evaluators", mine.evaluator) != create("evaluators", theirs.evaluator):
            yield f"judge {mine.evaluator} instead of {theirs.evaluator}"
    if task.guidance != _scale(paper):
        yield f"guidance {task.guidance} instead of {_scale(paper)}"


def _scale(row: Mapping[str, Any]) -> str:
    """Return whose guidance: each row's own, or one for all."""
    return f"{row['guidance']:g}" if "guidance" in row else "own"


def _own(row: Mapping[str, Any], folder: Path, given: Mapping[str, Path] | None) -> Path:
    """Return where the task's prompt set is: a shipped file, or an asset."""
    name: str = row["prompts"]
    if name.startswith(ASSET):
        return assets.locate(name.removeprefix(ASSET), given)
    return folder / name


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as exc:
        raise SpecError(
            f"{path}: expected a CSV file, got: {getattr(exc, 'strerror', None) or exc}"
        ) from exc


def _source(name: str, data: bytes, base: int | None) -> str:
    """Return how a record names the prompt set; where it lies on a machine is nobody's business."""
    seeds = "" if base is None else f" (seeds: {base} + the row's number)"
    return f"{name.removeprefix(ASSET)} {hashlib.sha256(data).hexdigest()[:8]}{seeds}"
