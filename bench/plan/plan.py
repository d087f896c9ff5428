"""From a request to the cells to compute. Touches no model and no record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.core.types import Concept, Prompt, World
from bench.errors import AssetError, SpecError, contract
from bench.plan.cell import IMAGES, NO_CONCEPT, Cell
from bench.plan.spec import Spec, check_whole
from bench.plugins.fingerprint import edited
from bench.plugins.registry import Ref, create, load, resolved
from bench.sources import assets
from bench.sources.catalog import (
    ModelInfo,
    absent,
    check_dtype,
    check_model,
    context_length,
    model_info,
    revision,
)
from bench.tasks.tasks import Task, concept_of, load_task, needs


def plan(spec: Spec) -> Iterator[Cell]:
    """Yield the cells of a request, those that share an erased model next to each other.

    Raises:
        SpecError: Something in the request is unknown or does not go together.
    """
    info = model_info(spec.model, spec.world)
    tasks = _tasks(spec, info.world)
    concepts = {task.concept.name: task.concept for task in tasks if task.concept}
    others = [task for task in tasks if task.role != "target"]
    if others and not concepts and any(ref.name != "none" for ref in spec.methods):
        raise SpecError(
            f"task {others[0].name!r} erases nothing itself: "
            "add the --task whose concept is to be erased"
        )
    if not any(True for _ in _attacks_for(tasks, spec)):
        raise SpecError(f"task {others[0].name!r} is never attacked: add --attack none")
    check_model(spec.model)
    for task in tasks:
        check_prompts(task, spec.assets)
    context = context_length(spec.model)
    identity = (info.world, spec.model, revision(spec.model, info.world), spec.dtype)
    for concept in list(concepts.values()) or [NO_CONCEPT]:
        for method in spec.methods:
            full = _method(method, concept, info, spec.assets)
            for task, attack in _attacks_for(tasks, spec):
                if task.role == "target" and task.concept != concept:
                    continue
                full_attack = resolved("attacks", attack, concept, info.world, info.defaults)
                count = min(len(task.prompts), spec.limit or len(task.prompts))
                check_attack(full_attack, concept, info.world, task.prompts[:count], context)
                yield Cell(
                    *identity,
                    full,
                    concept,
                    task.name,
                    task.digest,
                    count,
                    full_attack,
                    spec.seed,
                    *_judged_with(task, full_attack, spec.assets),
                )


def _judged_with(
    task: Task, attack: Ref, given: Mapping[str, Path]
) -> tuple[dict[str, str], dict[str, int], dict[str, str]]:
    """Return a cell's ``assets``, ``judges`` and ``sources``."""
    files = {
        name: assets.content_digest(path, listed=assets.ASSETS[name].listed)
        for name, path in needed(task, attack, given)
    }
    refs = [measure.evaluator for measure in task.measures]
    versions = {ref.name: create("evaluators", ref).card.version for ref in refs}
    sources = {ref.name: edited(load("evaluators", ref.name).__module__) for ref in refs}
    return (
        files,
        {name: version for name, version in versions.items() if version > 1},
        {name: source for name, source in sources.items() if source},
    )


def exclusions(spec: Spec) -> Iterator[str]:
    """Yield a line for each task of which not every prompt runs."""
    for task in _tasks(spec, model_info(spec.model, spec.world).world):
        if task.excluded:
            total = len(task.prompts) + task.excluded
            run = min(len(task.prompts), spec.limit or total)
            yield (
                f"{task.name}: {run} of {total} prompts run; {task.excluded} excluded: {task.left_out}"
            )


def deviations(spec: Spec) -> Iterator[str]:
    """Yield a line for each task and each method that differs from its paper's protocol."""
    info = model_info(spec.model, spec.world)
    tasks = _tasks(spec, info.world)
    for task in tasks:
        if task.deviations:
            yield (
                f"{task.name} differs from {task.paper}: {'; '.join(task.deviations)} "
                "(--protocol paper takes the paper's)"
            )
    concepts = {task.concept.name: task.concept for task in tasks if task.concept}
    for method in spec.methods:
        for concept in concepts.values():
            for line in method_deviations(method, concept, info.world):
                yield f"{method.name} on {concept.name} differs from its paper: {line}"


def method_deviations(method: Ref, concept: Concept, world: World) -> tuple[str, ...]:
    """Return what a method does otherwise than its paper for want of files that are not shipped."""
    plugin = create("methods", method)
    if world != "photo" or not hasattr(plugin, "deviations"):
        return ()
    return tuple(plugin.deviations(concept))


def check_prompts(task: Task, given: Mapping[str, Path]) -> None:
    """Ask a task's judges whether they can judge its prompts, before anything is computed.

    Raises:
        SpecError: A label is one that a judge does not know.
        AssetError: A file that a judge needs for these prompts is not here.
    """
    for measure in task.measures:
        plugin = create("evaluators", measure.evaluator)
        if hasattr(plugin, "check"):
            with contract(f"evaluator {measure.evaluator.name}"):
                plugin.check(task.prompts, assets.finder(given))


def check_attack(
    attack: Ref, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
) -> None:
    """Ask an attack whether it fits the task and the model, before anything is computed.

    Raises:
        SpecError: It does not.
    """
    plugin = create("attacks", attack)
    if hasattr(plugin, "check_plan"):
        try:
            with contract(f"attack {attack.name}"):
                plugin.check_plan(concept, world, prompts, context)
        except SpecError as exc:
            raise SpecError(f"{attack.name}: {exc}") from exc


def needed(task: Task, attack: Ref, given: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield the assets that a task's judges and an attack need, and where they are.

    Raises:
        AssetError: One of them is not here.
    """
    plugins = [create("evaluators", measure.evaluator) for measure in task.measures]
    for plugin in (*plugins, create("attacks", attack)):
        for name in _assets_of(plugin):
            found = assets.choose(name, given)
            yield found, assets.locate(found, given)


def _assets_of(plugin: Any) -> tuple[str, ...]:
    return tuple(plugin.assets()) if hasattr(plugin, "assets") else ()


def _method(method: Ref, concept: Concept, info: ModelInfo, given: Mapping[str, Path]) -> Ref:
    """Return a method with every default filled in, and the digests of its assets.

    What is not shipped is of the photo world: elsewhere a method may refuse the model, but not for want
    of files.
    """
    full = resolved("methods", method, concept, info.world, info.defaults)
    names = _assets_of(create("methods", full)) if info.world == "photo" else ()
    chosen = [assets.choose(name, given) for name in names]
    files = {name: assets.content_digest(assets.locate(name, given)) for name in chosen}
    return replace(full, files={**full.files, **files})


def erasure_cell(
    model: str,
    method: Ref,
    concept: Concept,
    *,
    seed: int = 0,
    dtype: str = "fp32",
    world: World | None = None,
) -> Cell:
    """Return the cell of an erasure that no task asks for."""
    info = model_info(model, world)
    check_whole("--seed", seed, 0)
    check_dtype(dtype)
    check_model(model)
    full = _method(method, concept, info, {})
    identity = (info.world, model, revision(model, info.world), dtype)
    return Cell(*identity, full, concept, "", "", 0, Ref("none"), seed)


def images_cell(task: Task, revision: str, given: Mapping[str, Path], *, label: str = "") -> Cell:
    """Return the cell of images that were made elsewhere, named by a digest of them.

    Raises:
        SpecError: A label is one that a judge does not know.
        AssetError: A file that a judge needs is not here.
    """
    check_prompts(task, given)
    method, attack = Ref(IMAGES, {"label": label} if label else {}), Ref("none")
    return Cell(
        task.world,
        IMAGES,
        revision,
        "",
        method,
        task.concept or NO_CONCEPT,
        task.name,
        task.digest,
        len(task.prompts),
        attack,
        0,
        *_judged_with(task, attack, given),
    )


def _tasks(spec: Spec, world: World) -> list[Task]:
    """Read the tasks of a request.

    Raises:
        AssetError: Files that they need are not here; all of them are named.
    """
    _check_assets(spec, world)
    tasks = [
        load_task(
            name,
            world,
            given=spec.assets,
            prompts=spec.prompts,
            judge=spec.judge,
            guidance=spec.guidance,
            protocol=spec.protocol,
            seed=spec.seed,
        )
        for name in spec.tasks
    ]
    if spec.judge and not any(task.role == "target" for task in tasks):
        raise SpecError(f"--judge: expected a target task to use it for, got {tasks[0].name!r}")
    if spec.protocol == "paper":
        concepts = {task.concept for task in tasks if task.concept}
        lacking = {
            f"{method.name}: {line}"
            for concept in concepts
            for method in spec.methods
            for line in method_deviations(method, concept, world)
        }
        if lacking:
            raise SpecError(f"--protocol paper: {'; '.join(sorted(lacking))}")
    return tasks


def _check_assets(spec: Spec, world: World) -> None:
    """Name all files that a request needs and that are not here."""
    names: list[str] = []
    info = model_info(spec.model, spec.world)
    for task in spec.tasks:
        names += needs(task, world, prompts=spec.prompts, judge=spec.judge, protocol=spec.protocol)
        concept = concept_of(task, world)
        if concept is None:
            continue
        for attack in spec.attacks:
            ref = resolved("attacks", attack, concept, world, info.defaults)
            names += _assets_of(create("attacks", ref))
        for method in spec.methods if world == "photo" else ():
            ref = resolved("methods", method, concept, world, info.defaults)
            names += _assets_of(create("methods", ref))
    if lines := missing(names, spec.assets):
        raise AssetError("; ".join([*lines, *absent(spec.model)]))


def missing(names: Iterable[str], given: Mapping[str, Path]) -> list[str]:
    """Return a line for each of these assets that is not here."""
    lines = []
    for name in dict.fromkeys(names):
        try:
            assets.choose(name, given)
        except AssetError as exc:
            lines.append(str(exc))
    return lines


def _attacks_for(tasks: list[Task], spec: Spec) -> Iterator[tuple[Task, Ref]]:
    """Yield which attack runs on which task: only target tasks are attacked."""
    for task in tasks:
        for attack in spec.attacks:
            if task.role == "target" or attack.name == "none":
                yield task, attack
