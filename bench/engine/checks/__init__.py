"""What all plug-ins keep to, looked at on a model of random weights: ``bench check``, and the tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar, get_args

from bench.core.errors import (
    AssetError,
    ChangedModelError,
    IncompatibleError,
    PluginError,
    PluginLoadError,
    RefusedError,
    SpecError,
    UnknownNameError,
)
from bench.core.foreign import contract
from bench.core.types import World
from bench.engine.checks import attacks, classes, judges, methods
from bench.engine.checks.classes import Subject
from bench.engine.checks.finding import Finding, Rules, apply, remarks
from bench.engine.checks.lab import Lab, quick, random_model
from bench.engine.checks.tasks import check_task
from bench.plan.plan import assets_of, missing
from bench.plugins.fingerprint import FAMILIES
from bench.plugins.registry import KINDS, Ref, create, names, resolved
from bench.sources.assets import finder
from bench.tasks.tasks import load_task, task_names

__all__ = ["Finding", "check"]
RUNS = "runs, and returns what it should"
OTHERS = "leaves models alone that are not its own"
_T = TypeVar("_T")


def check(
    what: str, *, assets: Mapping[str, Path] | None = None, label: str = ""
) -> Iterator[Finding]:
    """Look whether a plug-in or a task keeps to what all keep to; a method takes seconds.

    Args:
        what: A name, ``name:key=value,...``, a file of plug-ins, which need not be listed anywhere, a
            task's TOML file, or a distribution. Several plug-ins may have one name, and a
            distribution has several: all are looked at.
        assets: Local paths of weights and data, by the names of ``bench assets``.
        label: What an evaluator looks for in the pictures; by default church, van gogh or nudity, whatever
            it knows.

    Yields:
        A finding of each rule. After a fault, rules that need what could not be had are left out.

    Raises:
        SpecError: There is no such plug-in, or it does not take these parameters.
        AssetError: A file that it needs is not here.
    """
    assets = assets or {}
    if inside := _announced_by(what):
        for name in inside:
            try:
                yield from check(name, assets=assets, label=label)
            except (AssetError, SpecError) as exc:  # the others are looked at
                yield Finding(name, RUNS, "open", str(exc))
        return
    is_task = what.endswith(".toml") or any(what in task_names(w) for w in get_args(World))
    if is_task:
        yield from check_task(what, assets)
    try:
        subjects = classes.subjects(Ref.parse(what)) if not what.endswith(".toml") else []
    except PluginLoadError as exc:
        yield Finding(what, "can be imported", "wrong", str(exc))
        return
    if not subjects and not is_task:
        known = {name for kind in KINDS for name in names(kind)} | set(task_names("emoji"))
        advice = "; or a file, PATH.py or PATH.toml, or a distribution"
        raise UnknownNameError("plug-in or task", what, known, advice)
    for subject in subjects:
        with classes.listed(subject), TemporaryDirectory() as folder:
            yield from _check(subject, Path(folder), assets, label)


def _announced_by(distribution: str) -> list[str]:
    """Return what a distribution announces, if it is one and nothing else has its name."""
    every = [
        *(name for kind in KINDS for name in names(kind)),
        *task_names("emoji"),
        *task_names("photo"),
    ]
    if distribution in every:
        return []
    return [
        name
        for name in dict.fromkeys(every)
        if name.partition("/")[0] == distribution and "/" in name
    ]


def _check(
    subject: Subject, folder: Path, assets: Mapping[str, Path], label: str
) -> Iterator[Finding]:
    """Yield the findings of one plug-in: of its class, then of what it does."""
    rules = dict(classes.RULES)
    (first,) = apply(str(subject), {classes.CLASS: rules.pop(classes.CLASS)}, subject)
    yield first
    if first.state == "wrong":
        return
    with contextlib.suppress(PluginLoadError):  # of which a rule will tell
        create(subject.kind, subject.ref)  # what the user gave is refused as everywhere
    found = [
        *apply(str(subject), rules, subject),
        *remarks(str(subject), classes.NOTES, subject),
    ]
    yield from found
    if any(finding.state == "wrong" for finding in found):
        return
    subject = replace(subject, ref=quick(subject.kind, subject.ref))
    for world in get_args(World):
        _need(subject, world, assets)
        found = list(_RUN[subject.kind](subject, Lab(random_model(world), folder, assets), label))
        if any(finding.state != "open" for finding in found):
            break
    yield from found


def _need(subject: Subject, world: World, assets: Mapping[str, Path]) -> None:
    """Refuse to run a plug-in without its files; methods of ours need theirs in the photo world only."""
    own = subject.place.partition(".")[0] in FAMILIES
    if subject.kind == "methods" and own and world == "emoji":
        return
    full = resolved(subject.kind, subject.ref, classes.concept("object"), world)
    if lines := missing(assets_of(create(subject.kind, full)), assets):
        raise AssetError("; ".join(lines.values()))


def _methods(subject: Subject, lab: Lab, label: str) -> Iterator[Finding]:
    runs = {
        task: list(
            _attempt(subject, partial(methods.erase_twice, subject.ref, task, lab), methods.RULES)
        )
        for task in methods.TASKS
    }
    merged: dict[str, Finding] = {}
    for task, findings in runs.items():
        for f in findings:
            if f.rule not in merged or merged[f.rule].state == "ok" != f.state:
                merged[f.rule] = replace(f, says=f.says and f"task {task}: {f.says}")
    yield from merged.values()


def _attacks(subject: Subject, lab: Lab, label: str) -> Iterator[Finding]:
    hunt, victim = attacks.Hunt(()), attacks.victim_of(lab.base)
    run = partial(attacks.attack_twice, subject.ref, victim, lab, hunt)
    findings = list(_attempt(subject, run, attacks.rules(subject.ref.name)))
    if hunt.asked and findings[0].state != "ok":  # what it could not do without
        findings = list(apply(str(subject), attacks.LOOKS, hunt))
    yield from findings
    if findings[0].state == "ok":
        yield from remarks(str(subject), attacks.NOTES, hunt)


def _evaluators(subject: Subject, lab: Lab, label: str) -> Iterator[Finding]:
    try:
        label = label or _known_label(subject, lab)
    except SpecError as exc:
        yield Finding(str(subject), RUNS, "open", f"{exc}; give --label")
        return
    run = partial(judges.judge_twice, subject.ref, label, lab)
    yield from _attempt(subject, run, judges.RULES, others=False)


_RUN = {"methods": _methods, "attacks": _attacks, "evaluators": _evaluators}


def _known_label(subject: Subject, lab: Lab) -> str:
    """Return the label of the first of our tasks that an evaluator takes."""
    plugin, refusal = create("evaluators", subject.ref), SpecError("")
    for task in classes.CONCEPTS.values():
        prompts = load_task(task, "emoji").prompts
        try:
            with contract(str(subject)):
                if hasattr(plugin, "check"):
                    plugin.check(prompts, finder(lab.assets))
        except SpecError as exc:
            refusal = exc
        else:
            return prompts[0].label
    raise refusal


def _attempt(
    subject: Subject, run: Callable[[], _T], rules: Rules[_T], *, others: bool = True
) -> Iterable[Finding]:
    """Run a plug-in and yield its findings; ``others``: it is given models that are not its own."""
    who = str(subject)
    try:
        seen = run()
    except ChangedModelError as exc:
        yield Finding(who, OTHERS, "wrong", str(exc))
    except (IncompatibleError, RefusedError, SpecError) as exc:
        yield Finding(who, RUNS, "open", f"it says that it does not fit: {exc}")
    except PluginError as exc:
        yield Finding(who, RUNS, "wrong", str(exc))
    else:
        yield Finding(who, RUNS)
        if others:
            yield Finding(who, OTHERS)
        yield from apply(who, rules, seen)
