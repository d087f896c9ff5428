"""The command line: parse, call one library function, print. Heavy imports wait for their command."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.text import Text

from bench.errors import BenchError, SpecError, StoreError, UnknownNameError
from bench.report.text import plain

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
    help="Benchmark of robust concept erasure: erase a concept, attack the model, judge the images.",
    epilog="Exit codes: 0 done; 1 method and model do not fit; 2 the request is wrong; 3 a plug-in "
    "failed; 4 weights or data are missing; 5 a file or record cannot be read or written; 130 stopped.",
)
speed = typer.Typer(no_args_is_help=True, help="Measure how fast things are on this machine.")
app.add_typer(speed, name="speed")
out = Console(markup=False, emoji=False, highlight=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)
RESULTS = Path("results/local")
UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])  # click's, wherever that is

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME|PATH",
        help="A model's name, a diffusers folder, a checkpoint file, or a hub id.",
    ),
]
World = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="emoji or photo, for a model that fits both.", show_default=False
    ),
]
Unet = Annotated[
    str | None, typer.Option(metavar="PATH", help="A denoiser erased elsewhere: method external.")
]
TextEncoder = Annotated[
    str | None, typer.Option(metavar="PATH", help="A text encoder erased elsewhere, likewise.")
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="`bench list methods`; NAME or NAME:key=value,... Repeatable.",
    ),
]
Attacks = Annotated[
    list[str] | None,
    typer.Option("--attack", metavar="NAME", help="`bench list attacks`, likewise. Repeatable."),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", metavar="NAME", help="`bench list tasks`. Repeatable."),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of every random stream.")]
Limit = Annotated[
    int | None, typer.Option(metavar="N", help="Only the first N prompts of each task.")
]
Dtype = Annotated[
    str, typer.Option(metavar="TYPE", help="Type of drawing and attacking: fp32, bf16 or fp16.")
]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps.")]
BatchSize = Annotated[int, typer.Option(metavar="N", help="Images made or attacked at once.")]
Assets = Annotated[
    list[str] | None, typer.Option("--asset", metavar="NAME=PATH", help="See `bench assets`.")
]
Judge = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Evaluator in place of the target tasks' judge: name or name:key=value,...",
        show_default=False,
    ),
]
Prediction = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="What the denoiser of your own --model predicts, where nothing in it says so: epsilon or "
        "v_prediction. Elsewhere: --model NAME:prediction=epsilon.",
        show_default=False,
    ),
]
Config = Annotated[
    str,
    typer.Option(
        metavar="PATH|ID",
        help="A diffusers folder or hub model whose configuration and tokenizer a checkpoint file takes. "
        "Elsewhere: --model FILE:config=FOLDER.",
        show_default=False,
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE[:COLUMN]",
        help="A CSV, or a .txt with one prompt per line, in place of the task's prompt set; COLUMN holds "
        "the prompts where several could.",
    ),
]
Guidance = Annotated[
    str, typer.Option(metavar="own|SCALE", help="Each row's own guidance, or one for all rows.")
]
Protocol = Annotated[
    str,
    typer.Option(
        metavar="default|paper",
        help="paper: prompts, judge and guidance of the task's paper, which are not all shipped.",
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Processes that attack together; each loads the models. On a CPU, try one per core.",
    ),
]
Results = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of records.")]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Compute again what is there already, records and cached pieces; if it is stopped, "
        "the same command resumes.",
    ),
]


class What(StrEnum):
    """What can be listed."""

    methods = "methods"
    attacks = "attacks"
    evaluators = "evaluators"
    tasks = "tasks"
    models = "models"


class Format(StrEnum):
    """How a table is printed."""

    terminal = "terminal"
    markdown = "markdown"
    csv = "csv"


@app.command()
def run(
    method: Methods = None,
    attack: Attacks = None,
    task: Tasks = None,
    model: Model = "emoji-sd",
    seed: Seed = 0,
    limit: Limit = None,
    batch_size: BatchSize = 64,
    device: Device = "cpu",
    workers: Workers = 1,
    dtype: Dtype = "fp32",
    asset: Assets = None,
    world: World = None,
    unet: Unet = None,
    text_encoder: TextEncoder = None,
    prediction: Prediction = "",
    config: Config = "",
    prompts: Prompts = None,
    judge: Judge = "",
    guidance: Guidance = "own",
    protocol: Protocol = "default",
    results: Results = RESULTS,
    images: Annotated[
        bool | None,
        typer.Option(
            "--images/--no-images",
            help="Keep images and draw one grid per cell; by default not those of which only features "
            "are measured, as for FID.",
            show_default=False,
        ),
    ] = None,
    keep_unsafe_images: Annotated[
        bool,
        typer.Option(
            "--keep-unsafe-images",
            help="Keep photographs for an nsfw concept as they are; else only blurred ones. Grids "
            "are blurred in any case.",
        ),
    ] = False,
    fresh: Fresh = False,
) -> None:
    """Compute what is missing of a result matrix, and print its table.

    A command that was stopped resumes when it is given again.

    Example: bench run --method p-esd --attack unlearndiff --task nudity
    """
    from bench.engine.workers import Workers as Crew
    from bench.plan.plan import deviations, exclusions, plan
    from bench.report.tables import cer_tables
    from bench.sources.catalog import settle
    from bench.store.artifacts import Artifacts
    from bench.store.store import Store

    methods = _with_external(method, unet, text_encoder)
    model = _model(model, prediction, config)
    spec = _spec(
        model, methods, attack, task, seed, limit, dtype, asset, world, prompts, judge,
        guidance, protocol,
    )  # fmt: skip
    if batch_size < 1:
        raise SpecError(f"--batch-size: expected at least 1, got {batch_size}")
    settle(model)
    cells, cache = list(plan(spec)), Artifacts()
    since = cache.begin([cell.id for cell in cells], fresh=fresh)
    store, cache = Store(results, since), Artifacts(since=since)
    store.check_writable()
    for line in (*exclusions(spec), *deviations(spec)):
        _say(line, err)
    found = [store.get(cell) for cell in cells]
    missing = [c for c, r in zip(cells, found, strict=True) if r is None or r.status == "failed"]
    if missing:
        most = max((cell.prompts for cell in missing if cell.attacked), default=1)
        with Crew(min(workers, most)) as crew:  # they load while this process does
            import torch

            from bench.engine import Settings
            from bench.engine.local import run_cells

            _check_device(device, torch)
            settings = Settings(
                device,
                batch_size,
                images,
                keep_unsafe_images,
                cache,
                assets=spec.assets,
                prompts=prompts,
                judge=judge,
                guidance=spec.guidance,
                protocol=spec.protocol,
            )
            for record, _ in run_cells(missing, store, settings, err, crew):
                _say(_line(record), err)
    cache.end([cell.id for cell in cells])
    records = [known for cell in cells if (known := store.get(cell))]
    for table in cer_tables(records):
        _print_table(table, Format.terminal)
    done = len(cells) - len(missing)
    _say(f"{done} of {len(cells)} cells were there already. Records: {results}")
    if any(r.status == "failed" for r in records):
        raise typer.Exit(3)


@app.command("plan")
def plan_(
    method: Methods = None,
    attack: Attacks = None,
    task: Tasks = None,
    model: Model = "emoji-sd",
    seed: Seed = 0,
    limit: Limit = None,
    dtype: Dtype = "fp32",
    asset: Assets = None,
    world: World = None,
    unet: Unet = None,
    text_encoder: TextEncoder = None,
    prediction: Prediction = "",
    config: Config = "",
    prompts: Prompts = None,
    judge: Judge = "",
    guidance: Guidance = "own",
    protocol: Protocol = "default",
    results: Results = RESULTS,
) -> None:
    """Show the cells of a request and which of them are done. Computes nothing.

    Example: bench plan --method esd --method p-esd --attack unlearndiff --task church
    """
    from bench.plan.plan import deviations, exclusions, plan
    from bench.report.tables import plan_table
    from bench.store.store import Store

    methods = _with_external(method, unet, text_encoder)
    model = _model(model, prediction, config)
    spec = _spec(
        model, methods, attack, task, seed, limit, dtype, asset, world, prompts, judge,
        guidance, protocol,
    )  # fmt: skip
    store = Store(results)
    table = plan_table([(cell, cell in store) for cell in plan(spec)])
    _print_table(table, Format.terminal)
    for line in (*exclusions(spec), *deviations(spec)):
        _say(line)


@app.command("judge")
def judge_(
    folder: Annotated[Path, typer.Argument(help="Images, one for each prompt of the task.")],
    task: Annotated[str, typer.Option(help="See `bench list tasks`.")],
    world: Annotated[
        str | None,
        typer.Option(
            help="emoji or photo. Default: the only one that has this task, or else emoji for images "
            "of at most 64 pixels.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        str, typer.Option(help="What to call these images in tables.", show_default=False)
    ] = "",
    in_order: Annotated[
        bool,
        typer.Option("--in-order", help="Pair files and prompts in order, whatever the names say."),
    ] = False,
    judge: Judge = "",
    prompts: Prompts = None,
    asset: Assets = None,
    protocol: Protocol = "default",
    batch_size: Annotated[int, typer.Option(min=1, help="Images judged at once.")] = 64,
    device: Device = "cpu",
    results: Results = RESULTS,
    fresh: Fresh = False,
) -> None:
    """Judge images that were made elsewhere, as a task's own; no model is needed.

    A file is named by its prompt's id: church-001.png, 12.png, 12_0.png, or
    COCO_val2014_000000000042.jpg. Otherwise there must be as many files as
    prompts, and they are paired in order. A prompt whose image is missing or
    cannot be read is unscored. The record is like that of a run, its method is
    called "images". Images are neither copied nor shown.

    Example: bench judge my-images --task church --world photo --label rival
    """
    from bench.engine import Settings, plan_folder
    from bench.report.tables import cer_tables
    from bench.store.artifacts import Artifacts
    from bench.store.store import Store

    given = _given(asset)
    cell, what, matched = plan_folder(
        folder,
        task,
        cast("Any", world),
        given=given,
        prompts=prompts,
        judge=judge,
        protocol=cast("Any", protocol),
        label=label,
        in_order=in_order,
    )
    since = Artifacts().begin([cell.id], fresh=fresh)
    store, cache = Store(results, since), Artifacts(since=since)
    store.check_writable()

    import torch

    from bench.engine.local import judge_cell

    _check_device(device, torch)
    settings = Settings(device, batch_size, artifacts=cache, assets=given)
    _say(f"{what.world} world, {what.name}: {matched}", err)
    record, known = judge_cell(cell, what, matched, store, settings, err)
    cache.end([cell.id])
    for table in cer_tables([record]):
        _print_table(table, Format.terminal)
    _say(f"{'It was there already. ' if known else ''}Record: {store.path(cell)}")
    if record.status == "failed":
        raise typer.Exit(3)


@app.command("list")
def list_(
    what: Annotated[What, typer.Argument(help="What to list.")],
    model: Model = "emoji-sd",
    world: World = None,
) -> None:
    """List plug-ins, tasks or models by name.

    Example: bench list methods
    """
    from bench.report.describe import listing

    for name, about in listing(what.value, _world(model, world)):
        _say_wrapped(f"{name:<22} {about}", " " * 23)


@app.command()
def show(
    what: Annotated[What, typer.Argument(help="Of which kind.")],
    name: Annotated[str, typer.Argument(help="Which one.")],
    model: Model = "emoji-sd",
    world: World = None,
) -> None:
    """Show one plug-in's parameters and paper, one task's prompts, or one model.

    Example: bench show methods p-esd
    """
    from bench.report.describe import details

    for line in details(what.value, name, model, cast("Any", world)):
        _say_wrapped(line, " " * (len(line) - len(line.lstrip()) + 4))


@app.command()
def assets(
    model: Annotated[str | None, typer.Option(help="Only what this model needs.")] = None,
    task: Tasks = None,
    asset: Assets = None,
    world: World = None,
    protocol: Protocol = "default",
    fetch: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Get it from the hub.")
    ] = None,
) -> None:
    """List the weights and data that are not shipped, what is here of them, and fetch.

    Example: bench assets --task nudity --model sd14
    """
    from bench.tasks import inventory

    for name in fetch or ():
        inventory.fetchable(name)  # before the first is fetched
    for name in fetch or ():
        _say(f"{name}: {inventory.fetch(name)}")
    if fetch:
        return
    place, whose = cast("Any", world), cast("Any", protocol)
    items = list(inventory.inventory(_given(asset), model, task or (), place, whose))
    if not items:
        _say("nothing is needed beside what is shipped")
        return
    out.print(_assets_table(items))


@app.command()
def erase(
    method: Annotated[str, typer.Option(help="name or name:key=value,...")],
    concept: Annotated[
        list[str],
        typer.Option(help="A task's concept, or your own with --kind. Several: give it again."),
    ],
    out_: Annotated[
        Path, typer.Option("--out", help="Folder for delta.safetensors and card.json.")
    ],
    model: Model = "emoji-sd",
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="nsfw, style or object, for your own concept; once for all, or once each."
        ),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(help="What the concept is mapped to; once for all, or once each."),
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Also write a diffusers folder.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "fp32",
    world: World = None,
) -> None:
    """Erase one or more concepts without attacking: write what changed, and a card.

    Example: bench erase --method uce --concept church --out church-uce --export church-model

    Example: bench erase --method uce --concept castle --concept pizza --kind object --out both
    """
    from bench.plan.plan import erasure_cell
    from bench.plugins.registry import Ref
    from bench.sources.catalog import settle
    from bench.tasks.concepts import find_concepts

    home = _world(model, world)
    settle(model)
    known = find_concepts(concept, home, kind or (), anchor or ())
    cell = erasure_cell(model, Ref.parse(method), known, seed=seed, dtype=dtype, world=home)

    import torch

    from bench.engine import Settings
    from bench.engine.local import erase_cell
    from bench.models.erasures import check_export
    from bench.store.files import write

    _check_device(device, torch)
    if export:
        check_export(export)
    erased, files = erase_cell(cell, Settings(device), err)
    for name, data in files.items():
        write(out_ / name, data)
    card = erased.card
    changed = f"{card['tensors']} tensors changed, {card['zeroed']} weights zeroed"
    size = (out_ / "delta.safetensors").stat().st_size
    _say(f"{out_}: {changed}, {size} bytes, {card['seconds']:g} s")
    if export and card["sampler_time"]:
        raise SpecError(f"{method} changes how images are sampled, no weights: nothing to export")
    if export:
        _export(erased.model, export)


@app.command()
def apply(
    delta_: Annotated[
        Path, typer.Argument(metavar="DELTA", help="delta.safetensors, or its folder.")
    ],
    export: Annotated[Path, typer.Option(help="Folder for the diffusers model.")],
    model: Model = "emoji-sd",
    undo: Annotated[bool, typer.Option("--undo", help="Take the delta back from --model.")] = False,
    base: Annotated[str, typer.Option(help="With --undo: the original model.")] = "emoji-sd",
    force: Annotated[
        bool, typer.Option("--force", help="Also if the card names another model, or is missing.")
    ] = False,
) -> None:
    """Put an erasure on a model, or take it back, and write the result as a diffusers folder.

    Example: bench apply church-uce --export church-model
    """
    from bench.models import erasures

    erasures.check_export(export)
    if undo:
        _export(erasures.reverted(delta_, model, base, force=force), export)
    else:
        _export(erasures.applied(delta_, model, force=force), export)


@app.command()
def report(
    results: Results = RESULTS,
    task: Tasks = None,
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            help="How to print. CSV has a line for each figure; text that a spreadsheet would take "
            "for a formula begins with an apostrophe there.",
        ),
    ] = Format.terminal,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Prompts found on A, given to B.")
    ] = False,
    costs: Annotated[bool, typer.Option("--costs", help="What the attacks spent.")] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="Attack success by the judge's threshold.")
    ] = False,
    labels: Annotated[bool, typer.Option("--labels", help="Hits by label.")] = False,
) -> None:
    """Print a table of stored records: concept erasing rates, transfer, or costs.

    Example: bench report --format markdown > table.md
    """
    from bench.report.judging import label_table, threshold_curve
    from bench.report.tables import (
        cer_tables,
        cost_table,
        of_tasks,
        transfer_table,
    )
    from bench.store.store import Store

    if not results.is_dir():
        raise SpecError(f"there is no folder {results}: run `bench run` first, or give --results")
    records, passed_over = Store(results).load()
    for line in passed_over:
        _say(f"warning: {line}", err)
    if task:
        records = of_tasks(records, task)
    if not records:
        raise SpecError(f"{results} has no records of this kind: run `bench run` first")
    chosen = [
        make
        for make, on in (
            (transfer_table, transfer),
            (cost_table, costs),
            (threshold_curve, curve),
            (label_table, labels),
        )
        if on
    ]
    tables = [make(records) for make in chosen] if chosen else cer_tables(records)
    for n, table in enumerate(tables):
        if not table.lines:
            raise SpecError(f"{table.title}: {results} has no record that it could be made of")
        if n and format_ is Format.csv:
            typer.echo()
        _print_table(table, format_)


@speed.command("attack")
def speed_attack(
    attack: Annotated[str, typer.Option(help="name or name:key=value,...")] = "unlearndiff",
    method: Annotated[str, typer.Option(help="name or name:key=value,...")] = "esd",
    task: Annotated[str, typer.Option(help="A target task.")] = "church",
    prompts: Annotated[int, typer.Option(help="How many prompts.")] = 16,
    scaling: Annotated[
        bool,
        typer.Option("--scaling", help="Batched only: 8, 16, 32 prompts, 10 and 50 timesteps."),
    ] = False,
    model: Model = "emoji-sd",
    batch_size: Annotated[int, typer.Option(help="Prompts attacked at once.")] = 64,
    device: Device = "cpu",
    dtype: Annotated[
        str, typer.Option(help="Of the batched way: fp32, bf16 or fp16; official is fp32.")
    ] = "fp32",
    workers: Workers = 1,
) -> None:
    """Time an attack batched and in the official way, one prompt at a time; memory of both.

    Example: bench speed attack --attack unlearndiff --prompts 16 --workers 2
    """
    from bench.plan.plan import plan
    from bench.plugins.registry import Ref
    from bench.report.frame import Figure, Line, Table
    from bench.sources.catalog import check_dtype

    refs = [Ref.parse(method)]
    spec = _spec(model, refs, [attack], [task], 0, prompts, "fp32")
    (cell,) = plan(spec)
    check_dtype(dtype)

    import torch

    from bench.engine import Settings
    from bench.engine.local import erase_cell
    from bench.engine.speed import Way, measure_apart, scaled

    _check_device(device, torch)
    settings = Settings(device, batch_size)
    erase_cell(cell, settings, err)  # before the clock runs
    crews: list[tuple[Any, Way, int]] = [(cell, "batched", n) for n in dict.fromkeys((1, workers))]
    jobs = [*crews, (cell, "official", 1), *crews[::-1]]  # machines drift: once before, once after
    if scaling:
        jobs = [(each, "batched", workers) for each in scaled(cell)]
    ways = [f"{way} x {n}" if n > 1 else way for _, way, n in jobs]
    runs = [
        measure_apart(job, way, settings, judge=not scaling, workers=n, dtype=dtype)
        for job, way, n in jobs
    ]
    lines = [
        Line(
            (way,),
            (
                Figure(r.prompts),
                Figure(r.timesteps),
                Figure(r.attack, digits=1),
                Figure(r.attack / r.prompts / r.timesteps, digits=3),
                Figure(r.wall, digits=1),
                Figure(r.per_hour, digits=0),
                Figure(r.peak_mb),
            ),
        )
        for way, r in zip(ways, runs, strict=True)
    ]
    note = f"{attack} on {method}, {task}, {device}, {torch.get_num_threads()} threads"
    note += "; s: the attack alone, and a prompt's share a timestep; wall: with start and loading"
    if scaling:
        note += "; no prompt may succeed, so that each costs the same"
    theirs = runs[len(crews)]
    for way, *ours in zip(ways, () if scaling else runs[: len(crews)], runs[::-1], strict=False):
        wall, alone = (sum(getattr(r, key) for r in ours) / 2 for key in ("wall", "attack"))
        same = sum(a == b for a, b in zip(ours[0].texts, theirs.texts, strict=True))
        note += (
            f"; {way}: {theirs.wall / wall:.1f} times as fast as official, without start and "
            f"loading {theirs.attack / alone:.1f} times, {same} of {cell.prompts} adversarial "
            "texts equal"
        )
    if not scaling:
        note += "; batched before and after official, ratios of the mean"
    if workers > 1:
        note += f"; x {workers}: in {workers} processes"
    if dtype != "fp32":
        note += f"; batched in {dtype}, official in fp32"
    columns = ("prompts", "t", "s", "s/prompt/t", "wall", "prompts/h", "peak MB")
    table = Table("Speed of an attack", ("way",), columns, tuple(lines), note)
    _print_table(table, Format.terminal)


def _world(model: str, world: str | None) -> Any:
    from bench.sources.catalog import model_info

    return model_info(model, cast("Any", world)).world


def _with_external(
    method: list[str] | None, unet: str | None, text_encoder: str | None
) -> list[Any]:
    """Return the methods, and the one that ``--unet`` and ``--text-encoder`` are short for."""
    from bench.plugins.registry import Ref

    paths = {"unet": unet, "text_encoder": text_encoder}
    given = {name: path for name, path in paths.items() if path is not None}
    return [
        *(Ref.parse(text) for text in method or ()),
        *([Ref("external", given)] if given else []),
    ]


def _model(name: str, prediction: str, config: str) -> str:
    from bench.sources.catalog import joined

    return joined(name, prediction=prediction, config=config)


def _export(model: Any, folder: Path) -> None:
    from bench.models.erasures import export

    export(model, folder)
    _say(f"{folder}: StableDiffusionPipeline.from_pretrained loads it")


def _spec(
    model: str,
    methods: list[Any],
    attack: list[str] | None,
    task: list[str] | None,
    seed: int,
    limit: int | None,
    dtype: str,
    asset: list[str] | None = None,
    world: str | None = None,
    prompts: Path | None = None,
    judge: str = "",
    guidance: str = "own",
    protocol: str = "default",
) -> Any:
    from bench.plan.spec import Spec
    from bench.plugins.registry import Ref
    from bench.tasks.promptsets import scale

    fixed = None if guidance == "own" else scale(guidance, "--guidance")
    attacks = tuple(Ref.parse(text) for text in attack or ())
    tasks, given, place = tuple(task or ()), _given(asset), cast("Any", world)
    return Spec(
        model, tuple(methods), attacks, tasks, seed, limit, dtype, given, place, prompts, judge,
        fixed, cast("Any", protocol),
    )  # fmt: skip


def _given(asset: list[str] | None) -> dict[str, Path]:
    pairs = [text.partition("=") for text in asset or ()]
    if bad := [name for name, _, path in pairs if not path]:
        raise SpecError(f"--asset: expected NAME=PATH, got {bad[0]!r}")
    from bench.sources.assets import ASSETS

    for name, _, _ in pairs:
        if name not in ASSETS:
            raise UnknownNameError("asset", name, ASSETS)
    return {name: Path(path) for name, _, path in pairs}


def _line(record: Any) -> str:
    cell = record.cell
    text = f"{record.status:<7} {cell.task}, {cell.method.name}, attack {cell.attack.name}"
    if record.status != "ok":
        return f"{text}: {record.reason}"
    unchanged = (record.erasure or {}).get("notes", {}).get("unchanged")
    return f"{text}: the file changes nothing, its weights are the base's" if unchanged else text


def _check_device(device: str, torch: Any) -> None:
    try:
        torch.zeros(1, device=device).tolist()  # "meta" holds no data
    except (RuntimeError, AssertionError) as exc:
        reason = str(exc).splitlines()[0]
        raise SpecError(f"--device {device} cannot be used: {reason}; try --device cpu") from exc


def _say(line: object, to: Console = out, style: str = "") -> None:
    """Print one line; whatever is in it, it stays one line of text."""
    to.print(Text(plain(line), style), soft_wrap=True)


def _say_wrapped(line: str, indent: str) -> None:
    """Print text that may be longer than the terminal is wide."""
    parts = wrap(
        plain(line),
        out.width,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    for part in parts or [""]:
        out.print(Text(part), soft_wrap=True)


def _print_table(table: Any, format_: Format) -> None:
    from bench.report import render

    if format_ is Format.terminal:
        for line in ("", *render.terminal(table, out.width)):
            out.print(Text(line), soft_wrap=True)
    elif format_ is Format.markdown:
        typer.echo(render.markdown(table))
    else:
        typer.echo(render.csv_table(table), nl=False)
        for line in table.notes:  # figures alone go to the file
            _say(line, err)


def _assets_table(items: list[Any]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("name, licence", overflow="fold", max_width=24)
    table.add_column("here")
    table.add_column("MB", justify="right")
    table.add_column("what it is, where it comes from, the flag for your own copy", overflow="fold")
    for item in items:
        about = item.asset
        name = f"{item.name}\n{about.licence or 'licence not stated'}"
        source, _, commit = about.source.partition("@")
        source = f"{source} at {commit[:8]}" if commit else source
        text = f"{about.about}\n{source}\n{item.flag}"
        state = "yes" if item.path else "in part" if item.partly else "no"
        cells = (name, state, str(about.size or "?"), text)
        table.add_row(*("\n".join(map(plain, cell.split("\n"))) for cell in cells))
    return table


def main() -> None:
    """Run the app: an expected error is one line, an unexpected one a traceback."""
    nowhere = Path(os.devnull)  # of a stream that was closed by who started this
    sys.stdout, sys.stderr = sys.stdout or nowhere.open("w"), sys.stderr or nowhere.open("w")
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack letters of a table
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run_app())


def _run_app() -> int:
    if odd := [text for text in sys.argv[1:] if not _is_text(text)]:
        return _failed(
            f"expected text in UTF-8, got {odd[0]!r:.300}; rename it", SpecError.exit_code
        )
    try:
        code = int(app(standalone_mode=False) or 0)
        sys.stdout.flush()
    except BenchError as exc:
        return _failed(exc, exc.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except UsageError as exc:
        return _misused(exc)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _mute()
        return 1
    except OSError as exc:
        if exc.errno is None:  # not the operating system's
            raise
        _mute()
        where = f"{exc.filename}: " if exc.filename is not None else ""
        return _failed(f"{where}{exc.strerror}; choose another path", StoreError.exit_code)
    if code == 130:
        _say("stopped; what is finished is kept. Give the same command again to go on.", err)
    return code


def _is_text(argument: str) -> bool:
    """Say whether a record can hold an argument: bytes that are no text come as half characters."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mute() -> None:
    """Send what can no longer be printed nowhere, so that leaving does not fail on it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(reason: object, code: int) -> int:
    _say(f"error: {reason}", err, "red")
    return code


def _misused(exc: Any) -> int:
    """Say what is wrong with a command line; without any arguments its help is shown."""
    if type(exc).__name__ == "NoArgsIsHelpError":
        exc.show()
    else:
        command = exc.ctx.command_path if exc.ctx else "bench"
        _failed(f"{exc.format_message().rstrip('.')}; see `{command} --help`", SpecError.exit_code)
    return SpecError.exit_code
