"""From a request to the cells to compute. Touches no model and no record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from bench.core.foreign import contract
from bench.core.types import Concept, Prompt, World
from bench.errors import AssetError, PluginError, ShadowedPackageError, SpecError
from bench.plan.cell import IMAGES, NO_CONCEPT, Cell
from bench.plan.floors import Budgets, budgets, floors, in_words
from bench.plan.spec import Spec, check_whole
from bench.plugins.fingerprint import edited
from bench.plugins.registry import Kind, Ref, create, load, resolved
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
from bench.tasks.entries import Entry
from bench.tasks.lookup import find
from bench.tasks.tasks import Task, load_task, needs


@dataclass(frozen=True, slots=True)
class Job:
    """A cell to compute, with the task that was read for it.

    Args:
        cell: Which.
        task: Its prompts and measures.
        problem: Why it cannot be computed, where a plug-in is broken.
    """

    cell: Cell
    task: Task
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request comes to.

    Args:
        jobs: Its cells, those that share an erased model next to each other.
        notes: Which prompts never run, and what differs from the papers.
    """

    jobs: tuple[Job, ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    @property
    def problems(self) -> list[str]:
        """Why some of the jobs cannot be computed."""
        return list(dict.fromkeys(job.problem for job in self.jobs if job.problem))


class _Faults(list[str]):
    """What is wrong with the plug-ins of a cell; such a cell fails, the others are computed."""

    @contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except ShadowedPackageError:  # all plug-ins of a kind are another's
            raise
        except PluginError as exc:
            self.append(f"{type(exc).__name__}: {exc}")


def plan(*specs: Spec) -> Plan:
    """Return the cells of requests, each once.

    Cells of one erasure stand next to each other, whichever request they are of.

    Raises:
        SpecError: Something in the request is unknown or does not go together.
        AssetError: Files that it needs are not here; all of them are named.
    """
    _check_assets(specs)
    plans = [_plan(spec) for spec in specs]
    together: dict[str, dict[str, Job]] = {}
    for job in chain.from_iterable(plans):
        together.setdefault(job.cell.erase_key, {}).setdefault(job.cell.id, job)
    jobs = chain.from_iterable(group.values() for group in together.values())
    return Plan(tuple(jobs), tuple(dict.fromkeys(note for each in plans for note in each.notes)))


def pieces(specs: Iterable[Spec]) -> Iterator[tuple[Spec, list[str]]]:
    """Yield the requests for one erased model each, with the ids of those of its cells that are new.

    Raises:
        SpecError, AssetError: As :func:`plan`.
    """
    known: set[str] = set()
    for spec in specs:
        entries = _entries(spec, model_info(spec.model, spec.world).world)
        concepts = list(dict.fromkeys(e.concept for e in entries if e.role == "target"))
        for concept in concepts or [None]:
            shared = [e.role != "target" or e.concept == concept for e in entries]
            tasks = tuple(task for task, on in zip(spec.tasks, shared, strict=True) if on)
            for method in spec.methods:
                piece = replace(spec, methods=(method,), tasks=tasks)
                ids = [job.cell.id for job in plan(piece)]
                if new := [name for name in ids if name not in known]:
                    known.update(new)
                    yield piece, new


def _plan(spec: Spec) -> Plan:
    info = model_info(spec.model, spec.world)
    entries = _entries(spec, info.world)
    faults = {entry.name: _Faults() for entry in entries}
    tasks = []
    for entry in entries:
        task = _unread(entry)
        with faults[entry.name].noted():
            task = _task(entry, spec)
        tasks.append(task)
    _check_together(tasks, spec)
    check_model(spec.model)
    for task in tasks:
        with faults[task.name].noted():
            check_prompts(task, spec.assets)
    known = _budgets(tasks, spec, info)
    jobs = {job.cell.id: job for job in _jobs(tasks, faults, known, spec, info)}.values()
    matched = dict.fromkeys(line for each in known.values() for line in in_words(each))
    return Plan(tuple(jobs), (*_exclusions(tasks, spec), *_deviations(tasks, jobs), *matched))


def _budgets(tasks: Sequence[Task], spec: Spec, info: ModelInfo) -> dict[Concept, Budgets]:
    """Return how many images each attack on a concept makes, where floors are to make as many."""
    if not spec.floors:
        return {}
    known = {concept: budgets(spec.attacks, concept, info) for concept in _concepts(tasks)}
    if not any(known.values()):
        raise SpecError(
            "--floors: expected an attack that says how many images it makes, such as unlearndiff, got "
            f"{', '.join(map(str, spec.attacks))}"
        )
    return known


def _jobs(
    tasks: Sequence[Task],
    wrong: Mapping[str, _Faults],
    known: Mapping[Concept, Budgets],
    spec: Spec,
    info: ModelInfo,
) -> Iterator[Job]:
    """Yield the jobs of tasks.

    Args:
        tasks: Target tasks, and what is measured beside them.
        wrong: What is wrong with a task's judges, by its name.
        known: The budgets that floors are matched to, by concept.
        spec: The request.
        info: Its model.
    """
    context = context_length(spec.model)
    identity = (info.world, spec.model, revision(spec.model, info.world), spec.dtype)
    for concept in _concepts(tasks) or [NO_CONCEPT]:
        attacks = (*spec.attacks, *floors(known.get(concept, {})))
        for method in spec.methods:
            full_method, of_method = method, _Faults()
            with of_method.noted():
                full_method = _method(method, concept, info, spec.assets)
            for task, attack in _attacks_for(tasks, attacks):
                if task.role == "target" and task.concept != concept:
                    continue
                count = min(len(task.prompts), spec.limit or len(task.prompts))
                full_attack, judged, of_attack = attack, _Judged({}, {}, {}), _Faults()
                with of_attack.noted():
                    full_attack = resolved("attacks", attack, concept, info.world, info.defaults)
                    check_attack(full_attack, concept, info.world, task.prompts[:count], context)
                    judged = _judged_with(task, full_attack, spec.assets)
                seed, erase_seed = _seeds(full_method, task, full_attack, spec)
                cell = Cell(
                    *identity,
                    full_method,
                    concept,
                    task.name,
                    task.digest,
                    count,
                    full_attack,
                    seed,
                    *judged,
                    erase_seed,
                )
                problems = dict.fromkeys([*of_method, *wrong[task.name], *of_attack])
                yield Job(cell, task, "; ".join(problems))


def _seeds(method: Ref, task: Task, attack: Ref, spec: Spec) -> tuple[int, int | None]:
    """Return a cell's seed and, where it is another, that of its erasure.

    Without an attack nothing but the erasure is random: such a cell has the erasure's seed alone, so that
    there is one for all seeds of attacks. Prompts without seeds of their own take ``spec.seed``: it stays.
    """
    if method.name == "none" or spec.erase_seed in (None, spec.seed):
        return spec.seed, None
    if attack.name == "none" and task.seeded:
        return spec.erase_seed or 0, None
    return spec.seed, spec.erase_seed


class _Judged(NamedTuple):
    """A cell's fields that say who judges."""

    assets: dict[str, str]
    judges: dict[str, int]
    sources: dict[str, str]


def _judged_with(task: Task, attack: Ref, given: Mapping[str, Path]) -> _Judged:
    files = {name: assets.asset_digest(name, path) for name, path in needed(task, attack, given)}
    refs = [measure.evaluator for measure in task.measures]
    versions = {ref.name: create("evaluators", ref).card.version for ref in refs}
    sources = {ref.name: edited(load("evaluators", ref.name).__module__) for ref in refs}
    return _Judged(
        files,
        {name: version for name, version in versions.items() if version > 1},
        {name: source for name, source in sources.items() if source},
    )


def _exclusions(tasks: Iterable[Task], spec: Spec) -> Iterator[str]:
    """Yield a line for each task of which not every prompt runs."""
    for task in tasks:
        if task.excluded:
            total = len(task.prompts) + task.excluded
            run = min(len(task.prompts), spec.limit or total)
            yield (
                f"{task.name}: {run} of {total} prompts run; {task.excluded} excluded: {task.left_out}"
            )


def _deviations(tasks: Iterable[Task], jobs: Iterable[Job]) -> Iterator[str]:
    """Yield a line for each task and each method that differs from its paper's protocol."""
    for task in tasks:
        if task.deviations:
            yield (
                f"{task.name} differs from {task.paper}: {'; '.join(task.deviations)} "
                "(--protocol paper takes the paper's)"
            )
    for name, concept, line in dict.fromkeys(
        (job.cell.method.name, job.cell.concept.name, line)
        for job in jobs
        if not job.problem
        for line in method_deviations(job.cell.method, job.cell.concept, job.cell.world)
    ):
        yield f"{name} on {concept} differs from its paper: {line}"


def method_deviations(method: Ref, concept: Concept, world: World) -> tuple[str, ...]:
    """Return what a method does otherwise than its paper for want of files that are not shipped."""
    plugin = create("methods", method)
    if world != "photo" or not hasattr(plugin, "deviations"):
        return ()
    with contract(f"method {method.name}"):
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
        for name in assets_of(plugin):
            found = assets.choose(name, given)
            yield found, assets.locate(found, given)


def assets_of(plugin: Any) -> tuple[str, ...]:
    """Return the names of the assets that a plug-in says it needs."""
    with contract(type(plugin).__name__):
        return tuple(plugin.assets()) if hasattr(plugin, "assets") else ()


def _method(method: Ref, concept: Concept, info: ModelInfo, given: Mapping[str, Path]) -> Ref:
    """Return a method with every default filled in, and the digests of its assets."""
    full = resolved("methods", method, concept, info.world, info.defaults)
    names = assets_of(create("methods", full)) if _has_files(method, info.world) else ()
    chosen = [assets.choose(name, given) for name in names]
    files = {name: assets.content_digest(assets.locate(name, given)) for name in chosen}
    return replace(full, files={**full.files, **files})


def _has_files(method: Ref, world: World) -> bool:
    """Say whether a method's assets are needed.

    Those of this project's methods are for the photo world: elsewhere such a method may refuse the model,
    but not for want of files. Another distribution's method says for itself what it needs.
    """
    return world == "photo" or "/" in method.name


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


def _entries(spec: Spec, world: World) -> list[Entry]:
    """Return what the tasks say, each read once.

    Raises:
        SpecError: Two have the same name, so that their records could not be told apart.
    """
    entries = [find(task, world) for task in spec.tasks]
    names = [entry.name for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SpecError(f"--task: expected each once, got {twice!r} twice")
    return entries


def _task(entry: Entry, spec: Spec) -> Task:
    return load_task(
        entry,
        entry.world,
        given=spec.assets,
        prompts=spec.prompts,
        judge=spec.judge,
        guidance=spec.guidance,
        protocol=spec.protocol,
        seed=spec.seed,
        limit=spec.limit,
    )


def _unread(entry: Entry) -> Task:
    """Return what stands for a task that cannot be read because its judge is broken."""
    return Task(entry.name, entry.world, entry.role, entry.concept, (), (), "")


def _concepts(tasks: Iterable[Task]) -> list[Concept]:
    return list(dict.fromkeys(task.concept for task in tasks if task.concept))


def _check_together(tasks: Sequence[Task], spec: Spec) -> None:
    """Refuse tasks, methods and attacks that do not go together."""
    others = [task for task in tasks if task.role != "target"]
    if others and not _concepts(tasks) and any(ref.name != "none" for ref in spec.methods):
        raise SpecError(
            f"task {others[0].name!r} erases nothing itself: "
            "add the --task whose concept is to be erased"
        )
    if not any(True for _ in _attacks_for(tasks, spec.attacks)):
        raise SpecError(f"task {others[0].name!r} is never attacked: add --attack none")
    if spec.judge and len(others) == len(tasks):
        raise SpecError(f"--judge: expected a target task to use it for, got {tasks[0].name!r}")
    if spec.protocol == "paper":
        lacking = set()
        for concept in _concepts(tasks):
            for method in spec.methods:
                with _Faults().noted():
                    lines = method_deviations(method, concept, tasks[0].world)
                    lacking |= {f"{method.name}: {line}" for line in lines}
        if lacking:
            raise SpecError(f"--protocol paper: {'; '.join(sorted(lacking))}")


def _check_assets(specs: Iterable[Spec]) -> None:
    """Name all files that requests need and that are not here."""
    if lines := [line for spec in specs for line in _missing(spec)]:
        models = [line for spec in specs for line in absent(spec.model)]
        raise AssetError("; ".join(dict.fromkeys([*lines, *models])))


def _missing(spec: Spec) -> list[str]:
    """Return a line for each file that a request needs and that is not here."""
    info = model_info(spec.model, spec.world)
    names: list[str] = []
    for entry in _entries(spec, info.world):
        with _Faults().noted():
            names += needs(
                entry, info.world, prompts=spec.prompts, judge=spec.judge, protocol=spec.protocol
            )
        if entry.concept is None:
            continue
        plugins: list[tuple[Kind, Ref]] = [("attacks", ref) for ref in spec.attacks]
        plugins += [("methods", ref) for ref in spec.methods if _has_files(ref, info.world)]
        for kind, ref in plugins:
            with _Faults().noted():
                full = resolved(kind, ref, entry.concept, info.world, info.defaults)
                names += assets_of(create(kind, full))
    return missing(names, spec.assets)


def missing(names: Iterable[str], given: Mapping[str, Path]) -> list[str]:
    """Return a line for each of these assets that is not here."""
    lines = []
    for name in dict.fromkeys(names):
        try:
            assets.choose(name, given)
        except AssetError as exc:
            lines.append(str(exc))
    return lines


def _attacks_for(tasks: Sequence[Task], attacks: Sequence[Ref]) -> Iterator[tuple[Task, Ref]]:
    """Yield which attack runs on which task: only target tasks are attacked."""
    for task in tasks:
        for attack in attacks:
            if task.role == "target" or attack.name == "none":
                yield task, attack
