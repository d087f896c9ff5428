"""From a request to the cells to compute. Touches no model and no record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from bench.core.errors import (
    AssetError,
    ContractError,
    IncompatibleError,
    MissingError,
    PluginError,
    ShadowedPackageError,
    SpecError,
)
from bench.core.foreign import contract
from bench.core.types import Concept, Prompt, World
from bench.plan.cell import IMAGES, NO_CONCEPT, Cell
from bench.plan.floors import Budgets, budgets, floors, in_words, unmatched
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
        unfit: Why it is left out, where method and concept or model do not fit.
        after: The cell whose adversarial prompts the attack takes; it is computed before.
        source: The file of that cell's record, once it is there.
    """

    cell: Cell
    task: Task
    problem: str = ""
    unfit: str = ""
    after: Cell | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request comes to.

    Args:
        jobs: Its cells, those that share an erased model next to each other; after all others those that
            take what another cell's attack found.
        notes: Which prompts never run, what is left out, and what differs from the papers.
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
        SpecError: Something in the request is unknown or does not go together, or nothing of it fits.
        AssetError: Files that it needs are not here; all of them are named.
    """
    _check_assets(specs)
    for model in dict.fromkeys(spec.model for spec in specs):
        check_model(model)
    plans = [_plan(spec) for spec in specs]
    together: dict[tuple[bool, str], dict[str, Job]] = {}
    for job in chain.from_iterable(plans):
        place = (job.after is not None, job.cell.erase_key)
        together.setdefault(place, {}).setdefault(job.cell.id, job)
    ordered = sorted(
        together.items(), key=lambda group: group[0][0]
    )  # a second phase, of what takes
    jobs = tuple(chain.from_iterable(group.values() for _, group in ordered))
    notes = tuple(dict.fromkeys(note for each in plans for note in each.notes))
    if not jobs:
        raise SpecError(f"nothing to run; {'; '.join(notes)}")
    return Plan(jobs, notes)


def pieces(specs: Iterable[Spec]) -> Iterator[tuple[Spec, list[str]]]:
    """Yield the requests for one erased model each, with the ids of their cells; those with new ones only.

    Raises:
        SpecError, AssetError: As :func:`plan`.
    """
    known: set[str] = set()
    for spec in specs:
        world = model_info(spec.model, spec.world).world
        entries, erased = (
            _entries(spec, world),
            dict(zip(spec.erase, _also_erased(spec, world), strict=True)),
        )
        targets = [e.concept for e in entries if e.role == "target"]
        for concept in dict.fromkeys([*targets, *erased.values()]) or [None]:
            shared = [e.role != "target" or e.concept == concept for e in entries]
            tasks = tuple(task for task, on in zip(spec.tasks, shared, strict=True) if on)
            erase = tuple(task for task, own in erased.items() if own == concept)
            for method in spec.methods:
                piece = replace(spec, methods=(method,), tasks=tasks, erase=erase)
                ids = [job.cell.id for job in _plan(piece)]
                if not known.issuperset(ids):
                    known.update(ids)
                    yield piece, ids


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
    for task in tasks:
        with faults[task.name].noted():
            check_prompts(task, spec.assets)
    known = _budgets(tasks, spec, info)
    every = {job.cell.id: job for job in _jobs(tasks, faults, known, spec, info)}.values()
    jobs = [job for job in every if not job.unfit]
    unfit = dict.fromkeys(f"left out: {job.unfit}" for job in every if job.unfit)
    matched = dict.fromkeys(line for each in known.values() for line in in_words(each))
    silent = dict.fromkeys(line for each in known for line in unmatched(spec.attacks, each, info))
    notes = (*_exclusions(tasks, spec), *_deviations(tasks, jobs), *matched, *silent, *unfit)
    return Plan(tuple(jobs), notes)


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
    for concept in _erased(tasks, spec, info.world) or [NO_CONCEPT]:
        attacks = (*spec.attacks, *floors(known.get(concept, {})))
        for method in spec.methods:
            full_method, of_method, unfit = method, _Faults(), ""
            with of_method.noted():
                full_method = _method(method, concept, info, spec.assets)
                unfit = _unfit(full_method, concept, spec.model)
            for task, attack in _attacks_for(tasks, attacks):
                if task.role == "target" and task.concept != concept:
                    continue
                tried = _tried(attack, task, concept, context, wrong, spec, info)
                seed, erase_seed = _seeds(full_method, task, tried.attack, spec)
                cell = Cell(
                    *identity,
                    full_method,
                    concept,
                    task.name,
                    task.digest,
                    _count(task, spec),
                    tried.attack,
                    seed,
                    *tried.judged,
                    erase_seed,
                )
                problems = dict.fromkeys([*of_method, *wrong[task.name], *tried.faults])
                yield from tried.first
                yield from _job(Job(cell, task, "; ".join(problems), unfit), tried.first)


def _count(task: Task, spec: Spec) -> int:
    return min(len(task.prompts), spec.limit or len(task.prompts))


@dataclass(frozen=True, slots=True)
class _Tried:
    """An attack on a task with every parameter, who judges it, what is wrong, and what comes first."""

    attack: Ref
    judged: _Judged
    faults: _Faults
    first: tuple[Job, ...] = ()


def _tried(
    attack: Ref,
    task: Task,
    concept: Concept,
    context: int | None,
    wrong: Mapping[str, _Faults],
    spec: Spec,
    info: ModelInfo,
) -> _Tried:
    full, judged, faults = attack, _Judged({}, {}, {}), _Faults()
    first: tuple[Job, ...] = ()
    with faults.noted():
        full = resolved("attacks", attack, concept, info.world, info.defaults)
        check_attack(full, concept, info.world, task.prompts[: _count(task, spec)], context)
        judged = _judged_with(task, full, spec.assets)
        if taken := takes(full):
            method, by = map(Ref.parse, taken)
            other = replace(spec, methods=(method,), attacks=(by,), floors=False)
            first = tuple(_jobs([task], wrong, {}, other, info))
            full = replace(full, params={**full.params, "cell": first[-1].cell.id})
    return _Tried(full, judged, faults, first)


def _job(job: Job, first: Sequence[Job]) -> Iterator[Job]:
    """Yield a job as one that comes after others, if there are such."""
    if not first or job.unfit:
        yield job
        return
    *_, source = first
    attack, method = job.cell.attack.name, job.cell.method.name
    unfit = source.unfit and f"{attack} on {method}: {source.unfit}"
    if source.cell.erase_key == job.cell.erase_key:
        unfit = f"{attack} on {method}: its texts were found on {method} itself"
    yield replace(job, unfit=unfit, after=source.cell)


def _unfit(method: Ref, concept: Concept, model: str) -> str:
    """Return why a method does not fit a concept or a model; empty if it says nothing of that."""
    plugin = create("methods", method)
    if hasattr(plugin, "check_plan"):
        try:
            with contract(f"method {method.name}"):
                plugin.check_plan(concept, model)
        except IncompatibleError as exc:
            return f"{method.name}: {exc}" if method.name not in str(exc) else str(exc)
    return ""


def takes(attack: Ref) -> tuple[str, str] | None:
    """Return method and attack of the cell whose adversarial prompts an attack takes, if it does.

    Raises:
        PluginError: It says something else.
    """
    plugin = create("attacks", attack)
    if not hasattr(plugin, "takes"):
        return None
    with contract(f"attack {attack.name}"):
        taken = plugin.takes()
    if taken is None:
        return None
    if not (isinstance(taken, tuple) and [*map(type, taken)] == [str, str]):
        raise ContractError(
            f"attack {attack.name}: expected takes to be a method and an attack, got {taken!r:.60}"
        )
    return taken


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


def _also_erased(spec: Spec, world: World) -> list[Concept]:
    """Return the concept of each of the spec's tasks that are erased only.

    Raises:
        SpecError: A task has none.
    """
    concepts = []
    for entry in (find(task, world) for task in spec.erase):
        if entry.role != "target" or entry.concept is None:
            raise SpecError(
                f"--erase: expected a target task, got {entry.name!r}, a {entry.role} task"
            )
        concepts.append(entry.concept)
    return concepts


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


def _erased(tasks: Sequence[Task], spec: Spec, world: World) -> list[Concept]:
    """Return the concepts that are erased: those of the tasks, and others."""
    return list(dict.fromkeys([*_concepts(tasks), *_also_erased(spec, world)]))


def _check_together(tasks: Sequence[Task], spec: Spec) -> None:
    """Refuse tasks, methods and attacks that do not go together."""
    others = [task for task in tasks if task.role != "target"]
    concepts = _erased(tasks, spec, tasks[0].world)
    if others and not concepts and any(ref.name != "none" for ref in spec.methods):
        raise SpecError(
            f"task {others[0].name!r} erases nothing itself: add --erase TASK, whose concept is to be "
            "erased, or --task TASK to measure that, too"
        )
    if spec.erase and not others:
        raise SpecError(
            f"--erase: expected a retain or benign --task to measure on the erased models, "
            f"got only {tasks[0].name!r}"
        )
    if not any(True for _ in _attacks_for(tasks, spec.attacks)):
        raise SpecError(f"task {others[0].name!r} is never attacked: add --attack none")
    if spec.judge and len(others) == len(tasks):
        raise SpecError(f"--judge: expected a target task to use it for, got {tasks[0].name!r}")
    if spec.protocol == "paper":
        lacking = set()
        for concept in concepts:
            for method in spec.methods:
                with _Faults().noted():
                    lines = method_deviations(method, concept, tasks[0].world)
                    lacking |= {f"{method.name}: {line}" for line in lines}
        if lacking:
            raise SpecError(f"--protocol paper: {'; '.join(sorted(lacking))}")


def _check_assets(specs: Iterable[Spec]) -> None:
    """Name all files that requests need and that are not here: one in full, several in a few words each."""
    lacking: dict[str, str] = {}
    models: dict[str, str] = {}
    for spec in specs:
        lacking |= _missing(spec)
        models |= {
            f"--model FOLDER for {spec.model}, or it is fetched": s for s in absent(spec.model)
        }
    if len({*lacking, *models}) > 1 and lacking:
        raise MissingError([*map(assets.ways, lacking), *models])
    for line in lacking.values():
        raise AssetError(line)


def _missing(spec: Spec) -> dict[str, str]:
    """Return what a request needs and is not here, with a line for each that says so."""
    info = model_info(spec.model, spec.world)
    names: list[str] = []
    entries = _entries(spec, info.world)
    for entry in entries:
        with _Faults().noted():
            names += needs(
                entry, info.world, prompts=spec.prompts, judge=spec.judge, protocol=spec.protocol
            )
    methods: list[tuple[Kind, Ref]]
    methods = [("methods", ref) for ref in spec.methods if _has_files(ref, info.world)]
    attacks: list[tuple[Kind, Ref]] = [("attacks", ref) for ref in spec.attacks]
    attacked = [entry.concept for entry in entries if entry.concept]
    for concept in dict.fromkeys([*attacked, *_also_erased(spec, info.world)]):
        for kind, ref in (*(attacks if concept in attacked else ()), *methods):
            with _Faults().noted():
                full = resolved(kind, ref, concept, info.world, info.defaults)
                names += assets_of(create(kind, full))
    return missing(names, spec.assets)


def missing(names: Iterable[str], given: Mapping[str, Path]) -> dict[str, str]:
    """Return those of these assets that are not here, with a line for each that says so."""
    lines = {}
    for name in dict.fromkeys(names):
        try:
            assets.choose(name, given)
        except AssetError as exc:
            lines[name] = str(exc)
    return lines


def _attacks_for(tasks: Sequence[Task], attacks: Sequence[Ref]) -> Iterator[tuple[Task, Ref]]:
    """Yield which attack runs on which task: only target tasks are attacked."""
    for task in tasks:
        for attack in attacks:
            if task.role == "target" or attack.name == "none":
                yield task, attack
