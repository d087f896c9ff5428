"""Tasks: prompts, and what is measured on their images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.core.errors import AssetError, PluginLoadError, SpecError
from bench.core.paths import PROMPTS
from bench.core.types import Concept, Prompt, World
from bench.plugins.registry import Ref, create
from bench.sources import assets
from bench.tasks.entries import Entry, Measure, Role
from bench.tasks.exclusion import exclude, may_be_i2p
from bench.tasks.lookup import concept_of, find, home, homes, role, task_names
from bench.tasks.promptsets import PromptSet, read_prompts, shown, split_column
from bench.tasks.protocol import ProtocolName, deviations, under
from bench.tasks.safety import asks_for_nudity

__all__ = [
    "PROMPTS",
    "Measure",
    "ProtocolName",
    "Task",
    "about_task",
    "concept_of",
    "find",
    "home",
    "homes",
    "load_task",
    "needs",
    "role",
    "task_names",
]


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
        seeded: Whether the set says its prompts' seeds; else they follow from the run's.
    """

    name: str
    world: World
    role: Role
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
    seeded: bool = True

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


def load_task(
    name: str | Entry,
    world: World,
    root: Path = PROMPTS,
    *,
    given: Mapping[str, Path] | None = None,
    prompts: Path | None = None,
    judge: str = "",
    guidance: float | None = None,
    protocol: ProtocolName = "default",
    seed: int = 0,
    limit: int | None = None,
) -> Task:
    """Read a task and its prompt set.

    Args:
        name: A task, as for :func:`bench.tasks.lookup.homes`.
        world: In which world.
        root: Folder of the worlds.
        given: Local paths of assets, for prompt sets that are not shipped.
        prompts: A file, or ``FILE:COLUMN``, to be read in place of the task's own.
        judge: An evaluator in place of a target task's judge, ``name`` or ``name:key=value,...``.
        guidance: Scale for all rows in place of each row's own.
        protocol: "paper" takes the prompts, the judge and the guidance of the task's paper.
        seed: What a row's number is added to where the set has no seeds.
        limit: How many prompts are wanted. Of a set that has grown, the first edition with so many is
            read, so that its cells keep their identity.

    Raises:
        UnknownNameError: The world has no such task.
        SpecError: Its prompt set is empty or malformed, nothing of it may run, it follows no paper whose
            protocol is asked for, or its role and a measure do not go together.
        AssetError: Its prompt set is not here.
    """
    entry = under(find(name, world, root), protocol)
    if guidance is not None:
        entry = entry.saying(guidance=float(guidance))
    concept = entry.concept
    source = _source(entry, given, prompts)
    data = _read(source.path)
    if prompts is None:
        data = _edition(entry, data, limit)
    label = concept.name if concept else ""
    found = read_prompts(source.path, data, label, column=source.column, seed=seed)
    if prompts is None:
        _check_count(entry, source.path, len(found.prompts))
    measures = _measures(entry, judge)
    minors = may_be_i2p(found) or asks_for_nudity(concept, measures)
    target = concept if entry.role == "target" else None
    kept, exclusions = exclude(found, minors=minors, concept=target)
    if not kept:
        reasons = _why(found, exclusions)
        raise SpecError(
            f"{source.path}: none of its {len(found.prompts)} prompts may run: {reasons}"
        )
    task = Task(
        name=entry.name,
        world=world,
        role=entry.role,
        concept=concept,
        prompts=tuple(_prompt(prompt, target, entry.says.get("guidance")) for prompt in kept),
        measures=measures,
        digest=_digest(entry, data, source.column, kept if exclusions else (), judge),
        exclusions=exclusions,
        source=_named(source.name, data, None if found.seeded else seed),
        guidance=entry.guidance,
        paper=entry.paper.get("about", ""),
        deviations=tuple(
            deviations(entry, measures, entry.guidance, source.name if prompts else "")
        ),
        rows=tuple(prompt.id for prompt in found.prompts),
        seeded=found.seeded,
    )
    if task.streamed and task.role != "benign":
        raise SpecError(f"task {task.name!r}: reduce 'set' needs the role benign, got {task.role}")
    return task


def needs(
    name: str | Entry,
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
        SpecError: It follows no paper, and the paper's protocol is asked for.
    """
    entry = under(find(name, world, root), protocol)
    if entry.asset and not prompts:
        yield entry.asset
    refs = [Ref.parse(measure["evaluator"]) for measure in entry.says["measures"]]
    if judge and entry.role == "target":
        refs[0] = Ref.parse(judge)
    for ref in refs:
        evaluator = create("evaluators", ref)
        yield from evaluator.assets() if hasattr(evaluator, "assets") else ()


def about_task(name: str, world: World, root: Path = PROMPTS) -> str:
    """Return a task's role and size in one line, also where its prompt set is not here."""
    try:
        entry = find(name, world, root)
        task = load_task(entry, world)
    except AssetError:
        size = f"{entry.says['count']} prompts, " if "count" in entry.says else ""
        return f"{entry.role}, {size}{world} world; give --asset {entry.asset}=PATH"
    except PluginLoadError as exc:
        return f"[broken] {exc}"
    left_out = f" ({task.excluded} more are excluded)" if task.excluded else ""
    return f"{task.role}, {len(task.prompts)} prompts{left_out}, {world} world"


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a prompt set is: the file, its column of prompts if one is named, and its name in records."""

    path: Path
    column: str
    name: str


def _source(entry: Entry, given: Mapping[str, Path] | None, prompts: Path | None) -> _Source:
    """Return where the prompts are: the user's file, an asset, or the task's own file."""
    if prompts is None and entry.asset:
        return _Source(assets.locate(entry.asset, given), "", entry.asset)
    path, column = split_column(prompts or entry.folder / entry.prompts)
    return _Source(path, column, ":".join(filter(None, (path.name, column))))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as exc:
        raise SpecError(
            f"{path}: expected a CSV file, got: {getattr(exc, 'strerror', None) or exc}"
        ) from exc


def _edition(entry: Entry, data: bytes, limit: int | None) -> bytes:
    """Return the head of a set that has grown, as large as its first edition with so many prompts."""
    sizes = entry.says.get("editions", ()) if limit else ()
    size = next((size for size in sizes if size >= (limit or 0)), None)
    return data if size is None else b"".join(data.splitlines(keepends=True)[: size + 1])


def _check_count(entry: Entry, path: Path, got: int) -> None:
    expected = entry.says.get("count", got)
    if got != expected:
        raise SpecError(
            f"{path}: task {entry.name!r} has {expected} prompts, got {got}; "
            "give a set of your own with --prompts"
        )


def _measures(entry: Entry, judge: str) -> tuple[Measure, ...]:
    """Return what is measured; ``judge`` is the user's in place of a target task's own."""
    if not judge or entry.role != "target":
        return entry.measures
    own, *others = entry.measures
    ref = Ref.parse(judge)
    evaluator = create("evaluators", ref)
    if evaluator.scope != "image":
        raise SpecError(
            f"--judge: expected an evaluator of single images, got {ref.name!r}, which looks at all "
            "images together"
        )
    metric = getattr(evaluator, "metric", own.metric)
    return replace(own, metric=metric, evaluator=ref), *others


def _prompt(prompt: Prompt, target: Concept | None, guidance: float | None) -> Prompt:
    """Return a row as the task draws it and its judge looks for it."""
    if target:
        prompt = replace(prompt, label=target.name)
    return prompt if guidance is None else replace(prompt, guidance=float(guidance))


def _digest(entry: Entry, data: bytes, column: str, kept: Sequence[Prompt], judge: str) -> str:
    """Return what names the task's content; ``kept`` are the rows that run if not all do."""
    key = json.dumps(entry.identity, sort_keys=True).encode() + data + column.encode()
    if kept:
        key += json.dumps([prompt.id for prompt in kept]).encode()
    if judge and entry.role == "target":
        key += judge.encode()
    return hashlib.sha256(key).hexdigest()[:12]


def _named(name: str, data: bytes, base: int | None) -> str:
    """Return how a record names the prompt set; where it lies on a machine is nobody's business."""
    seeds = "" if base is None else f" (seeds: {base} + the row's number)"
    return f"{name} {hashlib.sha256(data).hexdigest()[:8]}{seeds}"


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
