"""The commands. Heavy imports wait for their command."""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from string import hexdigits
from typing import Annotated, Any, cast

import typer

from bench.cli import complete, trust
from bench.cli.app import App
from bench.cli.options import (
    RESULTS,
    Anchor,
    Assets,
    BatchSize,
    Compile,
    Corrected,
    Device,
    Dtype,
    Fresh,
    Images,
    Json,
    Judge,
    KeepUnsafe,
    Kind,
    Limit,
    MaxHours,
    Model,
    OwnConcept,
    Parts,
    Prompts,
    Protocol,
    RayAddress,
    Recompute,
    Request,
    Results,
    Seed,
    Specs,
    Split,
    Strict,
    Tasks,
    Workers,
    World,
    first_look,
    given,
    request,
)
from bench.cli.records import records_of
from bench.cli.terminal import (
    Format,
    err,
    print_assets,
    print_json,
    print_listing,
    print_table,
    print_tables,
    progress,
    remark,
    say,
    say_wrapped,
)
from bench.core.errors import EXIT_CODES, SpecError, UnknownNameError

app = App(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Benchmark of robust concept erasure: erase a concept, attack the model, judge the images.",
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()),
)
speed = App(no_args_is_help=True, help="Measure how fast things are on this machine.")
app.add_typer(speed, name="speed")


TIME_IS_UP = 6
_MANY = 40  # cells that are not listed unasked


class What(StrEnum):
    """What can be listed."""

    methods = "methods"
    attacks = "attacks"
    evaluators = "evaluators"
    tasks = "tasks"
    models = "models"
    figures = "figures"
    suites = "suites"


class Export(StrEnum):
    """What a plan can be written as."""

    sbatch = "sbatch"


@app.command()
@request
def run(
    specs: Specs,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    workers: Workers = None,
    ray_address: RayAddress = "",
    results: Results = RESULTS,
    images: Images = None,
    keep_unsafe_images: KeepUnsafe = False,
    fresh: Fresh = False,
    max_hours: MaxHours = None,
    recompute: Recompute = None,
    compile_: Compile = False,
    split: Split = None,
    json_: Json = False,
) -> None:
    """Compute what is missing of a result matrix, and print its table.

    A command that was stopped resumes when it is given again.

    Example: bench run --method p-esd --attack unlearndiff --task nudity

    Example: bench run --suite emoji-quick --workers 2

    Example: bench run --suite paper-style --ray-address auto --device cuda
    """
    from bench.engine import api
    from bench.report.summary import summary
    from bench.report.tables import in_a_line

    found = api.run(
        *specs, results=results, device=device, batch_size=batch_size, workers=workers,
        ray_address=ray_address, keep_images=images, keep_unsafe=keep_unsafe_images, fresh=fresh,
        max_hours=max_hours, recompute=recompute, compiled=compile_, split=split,
        console=progress,
    )  # fmt: skip
    print_tables(summary(found), Format.of(json_))
    remark(
        f"{found.known} of {found.cells} cells were there already. Records: {results}", aside=json_
    )
    told = set[str]()
    for record in found.failed if progress.quiet and json_ else ():  # else it was said
        say(in_a_line(record, told), err)
    if found.failed:
        more = "" if logging.getLogger("bench").isEnabledFor(logging.INFO) else "; -v shows where"
        remark(f"{len(found.failed)} of {found.cells} cells failed{more}", aside=json_)
    if found.stopped:
        done = f"{len(found) - len(found.failed)} of {found.cells} cells are done"
        say(f"stopped: {found.stopped}; {done}. The same command goes on.", err)
        raise typer.Exit(TIME_IS_UP)
    if found.failed:
        raise typer.Exit(3)


@app.command("plan")
@request
def plan_(
    specs: Specs,
    results: Results = RESULTS,
    device: Device = "auto",
    export: Annotated[
        tuple[Export, Path] | None,
        typer.Option(
            metavar="sbatch FILE",
            help="Write a Slurm array job with a command for each erased model.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = None,
    each: Annotated[
        bool | None,
        typer.Option(
            "--cells/--summary",
            help=f"A line for each cell, or sums by task, method and attack; sums from {_MANY} cells on.",
            show_default=False,
            rich_help_panel="What is printed",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Show the cells of a request, which of them are done, and what the rest costs. Computes nothing.

    What it costs is learnt from the finished cells in --results on the same kind of device, and where they
    say nothing from figures that ship.

    Example: bench plan --suite emoji-quick

    Example: bench plan --suite paper-style --device cuda --export sbatch style.sh
    """
    from bench.plan.plan import plan
    from bench.report.costs import finished, forecast
    from bench.report.plans import bill, plan_facts, plan_table, summary_tables
    from bench.store.artifacts import Artifacts
    from bench.store.store import Store

    planned, store = plan(*specs), Store(results)
    costs = forecast(device, finished(store), Artifacts().has_erasure)
    found = bill([(job.cell, job.cell in store) for job in planned], costs)
    if json_:
        facts = {"notes": planned.notes, "problems": planned.problems}
        print_json({"cells": plan_facts(found), **facts})
    else:
        each = len(found.cells) < _MANY if each is None else each
        print_tables([plan_table(found)] if each else summary_tables(found))
        for line in (*planned.notes, *planned.problems, found):
            say(line)
        if not each:
            remark("--cells lists them one by one")
    if export:
        from bench.cli.batch import sbatch
        from bench.store.files import write

        write(
            export[1],
            sbatch(specs, found, results=results, device=device, workers=workers or 1).encode(),
        )
        remark(f"sbatch {export[1]}", aside=json_)


@app.command("judge")
def judge_(
    folder: Annotated[Path, typer.Argument(help="Images, one for each prompt of the task.")],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml", help="`bench list tasks`, or a task file of your own."
        ),
    ] = None,
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
    concept: OwnConcept = "",
    kind: Kind = "",
    anchor: Anchor = "",
    asset: Assets = None,
    protocol: Protocol = "default",
    limit: Limit = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images judged at once.")] = 64,
    device: Device = "auto",
    results: Results = RESULTS,
    fresh: Fresh = False,
    json_: Json = False,
) -> None:
    """Judge images that were made elsewhere, as a task's own; no model is needed.

    A file is named by its prompt's id: church-001.png, 12.png, 12_0.png, or
    COCO_val2014_000000000042.jpg. Otherwise there must be as many files as
    prompts, and they are paired in order. A prompt whose image is missing,
    cannot be read or is all black is unscored. The record is like that of a
    run, its method is called "images". Images are neither copied nor shown.

    Example: bench judge my-images --task church --world photo --label rival
    """
    from bench.engine import api
    from bench.engine.folder import find_images, world_of
    from bench.report.summary import summary

    home = cast("Any", world or world_of(find_images(folder)))
    look = first_look(concept, home, prompts, judge, kind=kind, anchor=anchor)
    if bool(task) == bool(look):
        raise SpecError(f"expected --task or --concept, got {'both' if task else 'neither'}")
    if look:
        prompts, judge = None, ""
    record, known, path = api.judge(
        folder, look[0] if look else task or "", cast("Any", world), label=label, in_order=in_order,
        judge=judge, prompts=prompts, assets=given(asset), protocol=cast("Any", protocol),
        limit=limit, batch_size=batch_size, device=device, results=results, fresh=fresh, console=progress,
    )  # fmt: skip
    print_tables(summary([record]), Format.of(json_))
    remark(f"{'It was there already. ' if known else ''}Record: {path}", aside=json_)
    if record.status == "failed":
        raise typer.Exit(3)


@app.command("list")
def list_(
    what: Annotated[What, typer.Argument(help="What to list.")],
    model: Model = "emoji-sd",
    world: World = None,
    json_: Json = False,
) -> None:
    """List plug-ins, tasks, models, suites or figures by name, and what each does.

    Example: bench list methods
    """
    from bench.report.describe import listing

    rows = listing(what.value, _world(model, world))
    if json_:
        print_json([{"name": name, "about": about} for name, about in rows])
    else:
        print_listing(rows)


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="KIND|CELL",
            help="methods, attacks, evaluators, tasks, models, suites, figures; or the id of a "
            "cell, or the beginning of it.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(help="Which one of that kind.", autocompletion=complete.named),
    ] = None,
    model: Model = "emoji-sd",
    world: World = None,
    results: Results = RESULTS,
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Of a cell, also a picture: .png, .svg or .pdf."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts in that picture.")] = 6,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Show a plug-in's parameters, a task's prompts, a model, a suite; or the story of one cell.

    Example: bench show methods p-esd

    Example: bench show d8e62f3f --results results/reference --out church.png
    """
    if what in list(What):
        if name is None:
            raise SpecError(f"show {what}: expected a name as well, see `bench list {what}`")
        from bench.report.describe import details, facts

        if json_:
            print_json(facts(cast("Any", what), name, model, cast("Any", world)))
            return
        for line in details(cast("Any", what), name, model, cast("Any", world)):
            say_wrapped(line, " " * (len(line) - len(line.lstrip()) + 4))
        return
    if name is not None or not set(what) <= set(hexdigits):
        advice = "; or the beginning of a cell's id, as in `bench plan`"
        raise UnknownNameError("kind", what, [kind.value for kind in What], advice)
    from bench.cli.cells import show_cell

    show_cell(what, results, out_, device, limit, json_=json_)


@app.command()
def assets(
    model: Annotated[str | None, typer.Option(help="Only what this model needs.")] = None,
    task: Tasks = None,
    asset: Assets = None,
    world: World = None,
    protocol: Protocol = "default",
    concept: OwnConcept = "",
    kind: Kind = "",
    prompts: Prompts = None,
    judge: Judge = "",
    fetch: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Get it from the hub.")
    ] = None,
    json_: Json = False,
) -> None:
    """List the weights and data that are not shipped, what is here of them, and fetch.

    Example: bench assets --task nudity --model sd14
    """
    from bench.tasks import inventory

    for name in fetch or ():
        inventory.fetchable(name)  # before the first is fetched
    for name in fetch or ():
        say(f"{name}: {inventory.fetch(name)}")
    if fetch:
        return
    place, whose = cast("Any", world), cast("Any", protocol)
    home = _world(model, world) if model else place or cast("Any", "photo")
    tasks = (*first_look(concept, home, prompts, judge, kind=kind), *(task or ()))
    found = inventory.inventory(given(asset), model, tasks, place, whose)
    items = [item.facts() for item in found]
    if json_:
        print_json(items)
    elif items:
        print_assets(items)
    else:
        say("nothing is needed beside what is shipped")


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
    device: Device = "auto",
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

    from bench.core.devices import described, use
    from bench.engine.local import erase_cell
    from bench.engine.settings import Settings
    from bench.models.erasures import check_export
    from bench.store.files import probe, write_parts

    device = use(device)
    if export:
        check_export(export)
    probe(out_)
    erased, files = erase_cell(cell, Settings(device), progress)
    for name, data in files.items():
        write_parts(out_ / name, data)
    card = erased.card
    changed = f"{card['tensors']} tensors changed, {card['zeroed']} weights zeroed"
    size = (out_ / "delta.safetensors").stat().st_size
    say(f"{out_}: {changed}, {size} bytes, {card['seconds']:g} s on {described(device)}")
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
def leaderboard(
    out_: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the pages go.")],
    results: Results = RESULTS,
    task: Tasks = None,
    title: Annotated[str, typer.Option(help="Of the first page.")] = "Concept erasure leaderboard",
    corrected: Corrected = "",
    strict: Strict = False,
    json_: Json = False,
) -> None:
    """Write the leaderboard of stored records: pages that open from disk, without a server.

    `index.html` holds everything it needs; `cells/` has a page for each cell.

    Example: bench leaderboard --results results/reference --out leaderboard
    """
    from bench.report.corrected import judges_of
    from bench.report.tables import judged
    from bench.site.pages import write_pages
    from bench.store.store import Store

    records = records_of(results, task, strict=strict)
    judges = judges_of((r for r in records if judged(r)), corrected)
    index = write_pages(records, Store(results), out_, title, judges)
    if json_:
        print_json({"index": index, "records": len(records), "corrected": corrected or None})
    else:
        say(f"{index}: open it in a browser")


app.command()(trust.verify)
app.command()(trust.submit)


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
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Batched only: time and count each kind of operation."),
    ] = False,
    model: Model = "emoji-sd",
    batch_size: Annotated[int, typer.Option(help="Prompts attacked at once.")] = 64,
    device: Device = "auto",
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE",
            help="Of the batched way: fp32 (the default), bf16 or fp16; repeat it to time several. "
            "Official is fp32.",
        ),
    ] = None,
    workers: Parts = 1,
    official: Annotated[
        int | None,
        typer.Option(min=1, help="Prompts attacked in the official way, evenly spaced; all."),
    ] = None,
    json_: Json = False,
) -> None:
    """Time an attack batched and in the official way, one prompt at a time; memory of both.

    Example: bench speed attack --attack unlearndiff --prompts 50 --official 10 --workers 2
    """
    from bench.engine.operations import profile as profiled
    from bench.engine.settings import Settings
    from bench.engine.speed import compare

    spec = Request([method], [attack], [task], model, limit=prompts).spec("cpu")
    settings, dtypes = Settings(device, batch_size), dtype or ["fp32"]
    if profile:
        tables = [profiled(spec, settings, progress, dtype=each) for each in dtypes]
        print_tables(tables, Format.of(json_))
        return
    table = compare(
        spec, settings, progress, workers=workers, dtypes=dtypes, scaling=scaling, official=official
    )
    print_table(table, Format.of(json_))


@speed.command("photo")
def speed_photo(
    model: Model = "sd14-random",
    device: Device = "auto",
    dtype: Dtype = "fp32",
    batches: Annotated[
        str, typer.Option(metavar="N,N", help="Images drawn at once, one line for each.")
    ] = "1,8,32",
    steps: Annotated[
        int, typer.Option(min=1, help="Steps timed in each round of an attack, and of an erasure.")
    ] = 3,
    json_: Json = False,
) -> None:
    """Time images, steps of attacks and erasures, and FID's features at full size; random weights do.

    On a GPU: bench speed photo --dtype bf16. On a CPU the full size takes hours; --model tiny-random
    takes a minute. docs/cost-model.md says what Stable Diffusion should cost.

    Example: bench speed photo --model tiny-random --batches 1,8
    """
    try:
        sizes = [int(n) for n in batches.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise SpecError(f"--batches: expected numbers from 1, such as 1,8,32, got {batches!r}")
    from bench.engine.rates import rates

    table = rates(model, device=device, dtype=dtype, batches=sizes, steps=steps, console=progress)
    print_table(table, Format.of(json_))


@speed.command("scale")
def speed_scale(model: Model = "tiny-random", device: Device = "auto", json_: Json = False) -> None:
    """Time twice and four times as many prompts, steps and erasures: time grows with them, memory does not.

    Example: bench speed scale --model emoji-sd
    """
    from bench.engine.scaling import scaling

    print_table(scaling(model, device=device, console=progress), Format.of(json_))


def _world(model: str, world: str | None) -> Any:
    from bench.sources.catalog import model_info

    return model_info(model, cast("Any", world)).world


def _export(model: Any, folder: Path) -> None:
    from bench.models.erasures import export

    export(model, folder)
    say(f"{folder}: StableDiffusionPipeline.from_pretrained loads it")
