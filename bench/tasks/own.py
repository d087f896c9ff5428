"""A task of the user's own: a TOML file, one that another distribution announces, or a few options.

The file holds one task, its keys at the top::

    world = "emoji"                      # whose models and judges; "photo" by default
    role = "target"                      # by default; retain and benign tasks have no concept
    prompts = "pizza.csv"                # beside this file: a CSV, a .txt, FILE:COLUMN, or asset:NAME
    judge = "emoji-subject:top_k=1"      # or [[measures]] with metric, evaluator, reduce, threshold
    concept = { name = "pizza", kind = "object", anchor = "apple" }

``name`` is by default the file's, ``guidance`` one scale for all rows, ``count`` how many rows its
prompt set must have.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.core.announced import announced, imported
from bench.core.errors import PluginError, PluginLoadError, SpecError, did_you_mean
from bench.core.types import World
from bench.plugins.registry import Ref, create
from bench.sources.assets import asset_of
from bench.tasks.concepts import find_concept
from bench.tasks.entries import ASSET, Entry, Role, concept_in, shipped
from bench.tasks.promptsets import scale, shown

GROUP = "bench.tasks"
"""The group of entry points in which other distributions announce tasks."""
LONGEST = 100  # letters of a name: records are files and folders of that name
_WORDS = {
    "string_type": "a text",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "greater_than_equal": "at least 1",
    "list_type": "a list",
    "model_type": "a table",
}


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


class _Concept(_Table):
    name: str
    kind: Literal["nsfw", "style", "object"]
    anchor: str = ""
    terms: list[str] = []


class _Measure(_Table):
    metric: str
    evaluator: str
    reduce: Literal["rate", "mean", "set"] = "rate"
    threshold: float = 0.5


class _File(_Table):
    prompts: str
    name: str = ""
    world: World = "photo"
    role: Role = "target"
    concept: _Concept | None = None
    judge: str = ""
    measures: list[_Measure] = []
    guidance: float | None = None
    count: int | None = Field(None, ge=1)


_KEYS: dict[str, type[_Table]] = {"": _File, "concept": _Concept, "measures": _Measure}


def read_task(path: Path, name: str = "") -> Entry:
    """Read a task from a file.

    Args:
        path: The file.
        name: What the task is called instead of what the file says.

    Raises:
        SpecError: There is no such file, or something in it is wrong; one line says what.
    """
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as exc:  # ValueError: a broken TOML, no UTF-8, an impossible name
        reason = getattr(exc, "strerror", None) or exc
        raise SpecError(f"{path}: expected a task as a TOML file, got: {reason}") from exc
    except RecursionError as exc:
        raise SpecError(f"{path}: expected a task as a TOML file, got one too deep") from exc
    return _entry(said, str(path), path.parent, name, path.stem)


def announced_task(name: str) -> Entry:
    """Return a task of another distribution.

    Args:
        name: ``DISTRIBUTION/NAME``, one of ``announced(GROUP)``.

    Raises:
        PluginLoadError: What is announced is no task.
    """
    place = announced(GROUP)[name]
    path = imported(f"task {name!r}", place)
    if not isinstance(path, Path):
        raise PluginLoadError(
            f"task {name!r} from {place}: expected the pathlib.Path of a TOML file, got {path!r:.100}"
        )
    try:
        return read_task(path, name)
    except SpecError as exc:
        raise PluginLoadError(f"task {name!r} from {place}: {exc}") from exc


def first_look(
    concept: str,
    world: World,
    prompts: Path | None,
    judge: str,
    *,
    kind: str = "",
    anchor: str = "",
) -> Entry:
    """Return the target task of a concept, named after it: what a file with these keys says.

    Args:
        concept: What should have been forgotten.
        world: Whose models and judges.
        prompts: A file, or ``FILE:COLUMN``.
        judge: An evaluator, ``name`` or ``name:key=value,...``.
        kind: nsfw, style or object.
        anchor: What methods that replace the concept put in its place.

    Raises:
        SpecError: Something is missing or makes no sense.
    """
    given = {"--prompts": prompts, "--judge": judge}
    if gone := [flag for flag, value in given.items() if not value]:
        raise SpecError(
            f"--concept {concept}: expected --prompts and --judge beside it, "
            f"got no {' and no '.join(gone)}"
        )
    found = find_concept(concept, world, kind, anchor)
    if task := next((e.name for e in shipped(world).values() if _is_of(e, found.name)), None):
        raise SpecError(
            f"--concept {concept}: the task {task!r} has this concept: give --task {task}, "
            "with --prompts and --judge if you like"
        )
    said = {
        "world": world,
        "concept": {**asdict(found), "terms": list(found.terms)},
        "prompts": str(prompts),
        "judge": judge,
    }
    return _entry(said, f"--concept {found.name}", Path(), "", found.name)


def _is_of(entry: Entry, concept: str) -> bool:
    return entry.concept is not None and entry.concept.name == concept


def _entry(said: Mapping[str, Any], where: str, folder: Path, name: str, stem: str) -> Entry:
    """Check what a task says, and return it."""
    try:
        file = _File.model_validate(said)
    except ValidationError as exc:
        raise SpecError(f"{where}: {_what_is_wrong(exc)}") from exc
    try:
        says: dict[str, Any] = {
            "role": file.role,
            "prompts": file.prompts,
            "measures": _measures(file),
        }
        if file.concept or file.role == "target":
            says["concept"] = _concept(file)
        if file.guidance is not None:
            says["guidance"] = scale(str(file.guidance), "guidance")
        if file.count is not None:
            says["count"] = file.count
        _check_prompts(file.prompts)
        return Entry(name or _free(file.name or stem), file.world, folder, says, origin=where)
    except SpecError as exc:
        raise SpecError(f"{where}: {exc}") from exc


def _concept(file: _File) -> dict[str, Any]:
    """Return a target task's concept as an entry has it."""
    if file.concept is None:
        raise SpecError(
            'expected a concept, as in concept = { name = "fox", kind = "object" }, got none; '
            'a task without one has role = "retain" or "benign"'
        )
    if file.role != "target":
        raise SpecError(f"a task with the role {file.role} has no concept: leave it out")
    _check_text("concept.name", file.concept.name)
    for key in ("anchor", "terms"):
        value = getattr(file.concept, key)
        for text in filter(None, [value] if key == "anchor" else value):
            _check_text(f"concept.{key}", text, longest=1000)
    found = {key: value for key, value in file.concept.model_dump().items() if value}
    concept = concept_in({"concept": found})
    if len(concept.anchors) != len(concept.phrases):
        raise SpecError(
            f"concept.anchor: expected one, or one for each of {len(concept.phrases)} terms, got "
            f"{len(concept.anchors)}"
        )
    return found


def _measures(file: _File) -> list[dict[str, Any]]:
    """Return what is measured, whose evaluators exist and fit."""
    if bool(file.judge) == bool(file.measures):
        got = "both" if file.judge else "neither"
        raise SpecError(f'expected judge = "NAME" or [[measures]], got {got}')
    if file.judge and file.role != "target":
        raise SpecError(
            f"judge is for the role target: with the role {file.role} write [[measures]], each with "
            "metric, evaluator and reduce"
        )
    key = "judge" if file.judge else "measures"
    given = file.measures or [_Measure(metric="", evaluator=file.judge)]
    measures = [_measure(key, measure) for measure in given]
    metrics = [measure["metric"] for measure in measures]
    if twice := next((m for m in metrics if metrics.count(m) > 1), None):
        raise SpecError(f"measures: expected each metric once, got {shown(twice)} twice")
    _check_judge(file.role, metrics, measures[0]["reduce"])
    return measures


def _check_judge(role: Role, metrics: list[str], reduce: str) -> None:
    """Refuse metrics by which a table would take a task for one of another role."""
    successes = [metric for metric in metrics if metric == "asr" or metric.startswith("asr-")]
    if role == "target" and (metrics[0] not in successes or reduce != "rate"):
        raise SpecError(
            "measures: the first is a target task's judge: expected the metric asr (or asr-...) and the "
            f"reduce rate, got {shown(metrics[0])} and {reduce}"
        )
    if role != "target" and successes:
        raise SpecError(
            f"measures: {shown(successes[0])} is the metric of target tasks: give a {role} task's another "
            "name, such as accuracy"
        )


def _measure(key: str, given: _Measure) -> dict[str, Any]:
    try:
        evaluator = create("evaluators", Ref.parse(given.evaluator))
    except SpecError as exc:
        raise SpecError(f"{key}: {exc}") from exc
    except PluginError:  # a broken one fails its cells, not the reading of a task
        return {**given.model_dump(), "metric": given.metric or "asr"}
    together = given.reduce == "set"
    if (evaluator.scope == "set") != together:
        raise SpecError(
            f"{key}: expected an evaluator of {'all images together' if together else 'single images'}, "
            f"got {given.evaluator!r}, whose scope is {evaluator.scope!r}"
        )
    metric = given.metric or str(getattr(evaluator, "metric", "asr"))
    return {**given.model_dump(), "metric": metric}


def _check_prompts(prompts: str) -> None:
    if not prompts.strip():
        raise SpecError("prompts: expected a file or asset:NAME, got an empty text")
    if prompts.startswith(ASSET):
        asset_of(prompts.removeprefix(ASSET))


def _check_text(key: str, text: str, longest: int = LONGEST) -> None:
    """Refuse what cannot be a name in a table and on a disk."""
    plain = text.isprintable() and text.strip() == text and not text.startswith(".")
    if not plain or not 0 < len(text) <= longest:
        raise SpecError(
            f"{key}: expected 1 to {longest} printable letters, the first no dot, no blank around "
            f"them, got {shown(text)}"
        )


def _free(name: str) -> str:
    """Return a task's name if no shipped task has it."""
    _check_text("name", name)
    if name.endswith(".toml") or set(name) & set("/\\:"):
        raise SpecError(f"name: expected no slash, no colon and no .toml in it, got {shown(name)}")
    if any(name in shipped(world) for world in get_args(World)):
        raise SpecError(f"name: the task {name!r} is shipped: give yours another name")
    return name


def _what_is_wrong(error: ValidationError) -> str:
    """Return what is wrong first: an unknown key, else a value."""
    found = error.errors()
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    *around, key = [part for part in first["loc"] if isinstance(part, str)]
    place = ".".join((*around, key))
    if first["type"] == "extra_forbidden":
        known = sorted(_KEYS[".".join(around)].model_fields)
        hint = did_you_mean(key, known)
        header = isinstance(first["input"], dict) and not around
        advice = "; the keys of a task stand at the top, under no [header]" if header else ""
        return f"unknown key {shown(place)}.{hint} Known: {', '.join(known)}{advice}"
    if first["type"] == "missing":
        return f"expected a key {place!r}, got none"
    expected = first.get("ctx", {}).get("expected") or _WORDS.get(first["type"], first["msg"])
    return f"{place}: expected {expected}, got {shown(str(first['input']))}"
