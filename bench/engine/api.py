"""The library's entrances: :func:`run` for a matrix, :func:`evaluate` for one number.

The command line, calibration and tests come in here too. Planning needs no torch; it is loaded when a cell
has to be computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bench.core.devices import AUTO, described, use
from bench.core.errors import IncompatibleError, PluginError, SpecError, UnknownNameError
from bench.core.types import World
from bench.engine.budget import Time
from bench.plan.plan import Job, Plan, plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.report.render import terminal
from bench.report.summary import summary
from bench.report.tables import in_a_line
from bench.report.text import say
from bench.sources.catalog import model_info, settle
from bench.store.artifacts import Artifacts
from bench.store.record import Record
from bench.store.store import Store
from bench.tasks.entries import Entry
from bench.tasks.tasks import ProtocolName, concept_of, role, task_names

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from bench.engine.schedule import Chain
    from bench.engine.settings import Settings

__all__ = ["Ref", "Results", "Spec", "evaluate", "judge", "run"]
RESULTS = Path("results/local")
QUIET = Console(quiet=True, stderr=True)


@dataclass(frozen=True, slots=True)
class Results:
    """The records of a matrix, in the order of its cells; printed, it is their tables.

    Args:
        records: One per cell.
        known: How many of them were there already.
        folder: Where they are.
        cells: How many cells there are; of those that were not computed there is no record.
        stopped: Why not all were computed, in words; empty if they were.
    """

    records: tuple[Record, ...]
    known: int
    folder: Path
    cells: int = 0
    stopped: str = ""

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: int) -> Record:
        return self.records[place]

    def __str__(self) -> str:
        return "\n".join(line for table in summary(self.records) for line in terminal(table, 80))

    @property
    def failed(self) -> tuple[Record, ...]:
        """The records of cells that could not be computed."""
        return tuple(record for record in self.records if record.status == "failed")


def run(
    *specs: Spec,
    results: Path | str = RESULTS,
    device: str = AUTO,
    batch_size: int = 64,
    workers: int | None = None,
    ray_address: str = "",
    keep_images: bool | None = None,
    keep_unsafe: bool = False,
    fresh: bool = False,
    max_hours: float | None = None,
    recompute: bool | None = None,
    compiled: bool = False,
    split: int | None = None,
    console: Console = QUIET,
) -> Results:
    """Compute what is missing of a result matrix, and return all of it.

    A cell whose record is there is not computed again; a run that was stopped resumes.

    Args:
        specs: What to compute, each cell once.
        results: Folder of records.
        device: Where models run: "cpu", "cuda", "cuda:1", "mps", or the first that is there.
        batch_size: Images made or attacked at once.
        workers: Processes that share the cells, with Ray; each loads the models. Default: this one, or with
            ``ray_address`` one on each GPU or else on each machine.
        ray_address: An existing cluster of Ray, ``HOST:PORT`` or ``auto``.
        keep_images: Keep images and draw one grid per cell; by default all but those of streamed tasks.
        keep_unsafe: Keep photographs for an nsfw concept as they are; else only blurred ones.
        fresh: Compute again what is there.
        max_hours: Begin no cell that would not be finished in this time, as far as finished cells tell;
            ``None`` is no end.
        recompute: Erase with gradient checkpointing; ``None``: where memory is short.
        compiled: Draw and attack with a compiled denoiser.
        split: Attack a cell's prompts in parts of so many, which workers share.
        console: Where progress is shown, and a line for each finished cell.

    Raises:
        SpecError: Something in the request is unknown or does not go together.
        AssetError: Weights or data that it needs are not here.
        StoreError: A folder cannot be written.
    """
    if batch_size < 1:
        raise SpecError(f"--batch-size: expected at least 1, got {batch_size}")
    if workers is not None and workers < 1:
        raise SpecError(f"--workers: expected at least 1, got {workers}")
    if split is not None and split < 1:
        raise SpecError(f"--split: expected at least 1, got {split}")
    if ray_address or (workers or 1) > 1:
        from bench.engine.cluster import need_ray

        need_ray()
    time = Time(max_hours)
    for spec in specs:
        settle(spec.model)
    planned = plan(*specs)
    ids = [job.cell.id for job in planned]
    since = Artifacts().begin(ids, fresh=fresh)
    store, cache = Store(Path(results), since), Artifacts(since=since)
    store.check_writable()
    for line in planned.notes:
        say(line, console)
    todo = unfinished(planned, store)
    undrawn = _undrawn(planned, todo, store, cache)
    if todo.jobs or undrawn:
        from bench.engine.settings import Settings

        assets = {name: path for spec in specs for name, path in spec.assets.items()}
        settings = Settings(
            device, batch_size, keep_images, keep_unsafe, cache, assets=assets,
            recompute=recompute, compiled=compiled, split=split or 0,
        )  # fmt: skip
        told = set[str]()
        for record in _compute(
            Plan((*todo.jobs, *undrawn)), store, settings, console, time, workers, ray_address
        ):
            say(in_a_line(record, told), console)
            time.count(record)
    if not time.up:
        cache.end(ids)
    records = tuple(found for job in planned if (found := store.get(job.cell)))
    return Results(
        records, len(planned.jobs) - len(todo.jobs), Path(results), len(planned.jobs), time.up
    )


def _compute(
    todo: Plan,
    store: Store,
    settings: Settings,
    console: Console,
    time: Time,
    workers: int | None,
    address: str,
) -> Iterator[Record]:
    """Yield the records of cells: computed in this process, or by workers of Ray."""
    if address or (workers or 1) > 1:
        from bench.engine.schedule import chains

        work = chains(todo)
        most = sum(chain.width(settings) for chain in work)
        if workers and workers > most:
            what = (
                "cells that share an erased model and prompts are one's; --split N shares an attack"
            )
            say(f"--workers {workers}: {most} can have work: {what}", console)
        if address or most > 1:
            wanted = workers and min(workers, most)
            yield from _share(work, store, settings, console, time, wanted, most, address)
            return
    from bench.engine.local import run_cells

    settings = replace(settings, device=_device(settings.device, console))
    time.learn(settings.device, store, settings.artifacts)
    for record, _ in run_cells(todo.jobs, store, settings, console, time.fits):
        yield record


def _share(
    work: list[Chain],
    store: Store,
    settings: Settings,
    console: Console,
    time: Time,
    wanted: int | None,
    most: int,
    address: str,
) -> Iterator[Record]:
    """Yield the records of cells that workers of Ray compute, here or on a cluster."""
    from bench.engine import cluster, crew

    with cluster.connected(address, wanted or most, settings.device) as ray:
        has, nodes = ray.cluster_resources(), sum(node["Alive"] for node in ray.nodes())
        amount = {"cpus": has.get("CPU", 0), "gpus": has.get("GPU", 0), "nodes": nodes}
        found = cluster.seats(settings.device, wanted, most, here=not address, **amount)
        if address:
            settings.artifacts.check_writable()
            cluster.check_machines(ray, (settings.artifacts.root, store.root))
        time.learn(found.device, store, settings.artifacts)
        for record, _ in crew.run_cells(ray, found, work, store, settings, console, time.fits):
            yield record


def _device(name: str, console: Console) -> str:
    """Return the device that a name stands for, and say which it is."""
    device = use(name)
    say(f"device: {described(device)}", console)
    return device


def unfinished(planned: Plan, store: Store) -> Plan:
    """Return what of a plan is still to be computed: what has no record, or one of a failure."""
    return Plan(tuple(job for job in planned if job.cell not in store))


def _undrawn(planned: Plan, todo: Plan, store: Store, cache: Artifacts) -> tuple[Job, ...]:
    """Return the jobs that are finished, but for a picture that could not be written."""
    left = {job.cell.id for job in todo}
    waiting = (job for job in planned if cache.undrawn(store.picture(job.cell)).exists())
    return tuple(job for job in waiting if job.cell.id not in left)


def judge(
    folder: Path,
    task: str | Entry,
    world: World | None = None,
    *,
    label: str = "",
    in_order: bool = False,
    judge: str = "",
    prompts: Path | None = None,
    assets: Mapping[str, Path] | None = None,
    protocol: ProtocolName = "default",
    limit: int | None = None,
    batch_size: int = 64,
    device: str = AUTO,
    results: Path | str = RESULTS,
    fresh: bool = False,
    console: Console = QUIET,
) -> tuple[Record, bool, Path]:
    """Judge images that were made elsewhere, as a task's own.

    Args:
        folder: Where the images lie, named by their prompts' ids.
        task: Whose prompts they are of: a name, a file ``PATH.toml``, or what such a file says.
        world: Whose task; by default the one that fits.
        label: What to call the images in tables.
        in_order: Pair files and prompts in order, whatever the names say.
        judge: An evaluator in place of the task's judge.
        prompts: A file in place of the task's prompt set.
        assets: Local paths of weights and data.
        protocol: "paper" takes the prompts and the judge of the task's paper.
        limit: First prompts of the task only.
        batch_size: Images judged at once.
        device: Where judges run.
        results: Folder of records.
        fresh: Judge again what is there.
        console: Where progress is shown.

    Returns:
        The record, whether it was there already, and its file.
    """
    from bench.engine.folder import plan_folder
    from bench.engine.local import judge_cell
    from bench.engine.settings import Settings

    job, matched = plan_folder(
        folder,
        task,
        world,
        given=assets,
        prompts=prompts,
        judge=judge,
        protocol=protocol,
        label=label,
        in_order=in_order,
        limit=limit,
    )
    since = Artifacts().begin([job.cell.id], fresh=fresh)
    store, cache = Store(Path(results), since), Artifacts(since=since)
    store.check_writable()
    device = _device(device, console)
    say(f"{job.task.world} world, {job.task.name}: {matched}", console)
    settings = Settings(device, batch_size, artifacts=cache, assets=assets or {})
    record, known = judge_cell(job, matched, store, settings, console)
    cache.end([job.cell.id])
    return record, known, store.path(job.cell)


def evaluate(
    model: str | StableDiffusionPipeline,
    *,
    task: str = "",
    concept: str = "",
    attack: str = "none",
    method: str = "none",
    base: str = "",
    results: Path | str | None = None,
    assets: Mapping[str, Path] | None = None,
    limit: int | None = None,
    seed: int = 0,
    dtype: str = "fp32",
    **how: Any,
) -> Record:
    """Return one cell's record: how often a concept is drawn by a model.

    ``record.measurements["asr"]`` is the share of prompts on which the judge finds the concept.

    Args:
        model: A model's name, a diffusers folder, a hub id, or a pipeline in memory.
        task: A target task; by default the one that asks for ``concept``.
        concept: The concept; by default the task's.
        attack: An attack, ``name`` or ``name:key=value,...``.
        method: An erasure to do first, likewise.
        base: The model before it was erased, for attacks that need it: of ``model`` only the denoiser and
            the text encoder are taken then, put into ``base``.
        results: Folder of records; in the cache by default.
        assets: Local paths of weights and data.
        limit: First prompts of the task only.
        seed: Seed of every random stream.
        dtype: Type that images are drawn and attacked in: fp32, bf16, fp16.
        how: Further arguments of :func:`run`.

    Raises:
        SpecError, AssetError, StoreError: As :func:`run`.
        PluginError: A plug-in failed.
        IncompatibleError: Method and model do not fit.
    """
    cache = Artifacts()
    if isinstance(model, str):
        name = model
    else:
        from bench.models.erasures import kept

        name = str(kept(model, cache.root / "models"))
    methods = (Ref.parse(method),)
    if base:
        if method != "none":
            raise SpecError("evaluate: expected either base or method, got both")
        parts = {part: str(Path(name) / part) for part in ("unet", "text_encoder")}
        name, methods = base, (Ref("external", parts),)
    spec = Spec(
        name,
        methods,
        (Ref.parse(attack),),
        (_target(model_info(name).world, task, concept),),
        seed,
        limit,
        dtype,
        assets or {},
    )
    (record,) = run(spec, results=results or cache.root / "records", **how)
    if record.status == "skipped":
        raise IncompatibleError(record.reason)
    if record.status == "failed":
        raise PluginError(record.reason)
    return record


def _target(world: World, task: str, concept: str) -> str:
    """Return the task, or the first one that asks for a concept."""
    if task:
        own = concept_of(task, world)
        if concept and (own is None or own.name != concept):
            raise SpecError(
                f"evaluate: task {task!r} does not ask for {concept!r}: give one of them"
            )
        return task
    found: dict[str, str] = {}
    for name in task_names(world):
        asked = concept_of(name, world)
        if asked and role(name, world) == "target":
            found.setdefault(asked.name, name)
    if concept not in found:
        raise UnknownNameError("concept", concept, found, "; or give a task")
    return found[concept]
