"""The options that several commands share, and the request that they make."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

import typer

from bench.cli import complete
from bench.core.errors import SpecError
from bench.core.types import World as World_

if TYPE_CHECKING:
    from bench.plan.matrix import Part
    from bench.plan.spec import Spec
    from bench.plugins.registry import Ref
    from bench.tasks.entries import Entry

RESULTS = Path("results/local")
Specs = tuple[Any, ...]  # of bench.plan.spec.Spec, which a command imports when it runs
FIRST_LOOK = "A first look at your own concept, without a task"

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME|PATH",
        autocompletion=complete.names("models"),
        help="A model's name, a diffusers folder, a checkpoint file, or a hub id.",
        rich_help_panel="Model",
    ),
]
World = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="emoji or photo, for a model that fits both.",
        show_default=False,
        rich_help_panel="Model",
    ),
]
Unet = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="A denoiser erased elsewhere: method external.",
        rich_help_panel="Model",
    ),
]
TextEncoder = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="A text encoder erased elsewhere, likewise.", rich_help_panel="Model"
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        autocompletion=complete.names("methods"),
        help="`bench list methods`; NAME or NAME:key=value,... Repeatable.",
    ),
]
Attacks = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        metavar="NAME",
        autocompletion=complete.names("attacks"),
        help="`bench list attacks`, likewise. Repeatable. Default: none.",
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME|FILE.toml",
        autocompletion=complete.names("tasks"),
        help="`bench list tasks`, or a task file of your own. Repeatable.",
    ),
]
Erase = Annotated[
    list[str] | None,
    typer.Option(
        "--erase",
        metavar="NAME|FILE.toml",
        autocompletion=complete.names("tasks"),
        help="Erase this task's concept and measure --task retain or the like, not the task. Repeatable.",
        show_default=False,
    ),
]
OnlyMethods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        autocompletion=complete.names("methods"),
        help="Only this method: name or name:key=value,... Repeatable.",
    ),
]
OnlyAttacks = Annotated[
    list[str] | None,
    typer.Option(
        "--attack",
        metavar="NAME",
        autocompletion=complete.names("attacks"),
        help="Only this attack: name or name:key=value,... Repeatable.",
    ),
]
OnlySeed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Only this seed of erasure and attack."),
]
OwnConcept = Annotated[
    str,
    typer.Option(
        "--concept",
        metavar="NAME",
        help="Your own concept in place of a task, judged by --judge on --prompts.",
        show_default=False,
        rich_help_panel=FIRST_LOOK,
    ),
]
Kind = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="nsfw, style or object.",
        show_default=False,
        rich_help_panel=FIRST_LOOK,
    ),
]
Anchor = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What methods that replace the concept put in its place.",
        show_default=False,
        rich_help_panel=FIRST_LOOK,
    ),
]
Floors = Annotated[
    bool,
    typer.Option(
        "--floors",
        help="Also random and seed-search, with as many images of a prompt as each attack makes at most.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of every random stream.")]
Seeds = Annotated[
    list[int] | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="Seed of every random stream; 0 by default. Repeatable.",
        show_default=False,
    ),
]
EraseSeeds = Annotated[
    list[int] | None,
    typer.Option(
        "--erase-seed",
        metavar="N",
        help="Seed of the erasures; --seed is that of attacks then. Repeatable.",
        show_default=False,
    ),
]
MatrixFile = Annotated[  # a list, so that one that is given twice is seen
    list[Path] | None,
    typer.Option(
        metavar="FILE.toml",
        help="A matrix in a file: methods, attacks, tasks, seeds, model, limit, ... "
        "(`bench show suites emoji`). --method, --attack and --task pick from it, and replace it where it "
        "has no such name; other options replace what it says.",
        show_default=False,
        rich_help_panel="A matrix in a file",
    ),
]
Suite = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A matrix that ships: `bench list suites`.",
        show_default=False,
        rich_help_panel="A matrix in a file",
    ),
]
Limit = Annotated[
    int | None, typer.Option(metavar="N", help="Only the first N prompts of each task.")
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        help="Type of drawing and attacking: fp32, bf16 or fp16.",
        rich_help_panel="Model",
    ),
]
DrawnIn = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        help="Type of drawing and attacking: fp32, bf16 or fp16. auto: bf16 for photographs on a GPU "
        "unless --protocol paper, else fp32; a matrix says its own.",
        rich_help_panel="Model",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto (the first of cuda, mps, cpu), cpu, cuda, cuda:1, mps.",
        rich_help_panel="How it is computed",
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        metavar="N", help="Images made or attacked at once.", rich_help_panel="How it is computed"
    ),
]
Assets = Annotated[
    list[str] | None,
    typer.Option(
        "--asset",
        metavar="NAME=PATH",
        help="See `bench assets`.",
        rich_help_panel="Prompts, judges and other files",
    ),
]
Judge = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=complete.names("evaluators"),
        help="Evaluator in place of the target tasks' judge: name or name:key=value,...",
        show_default=False,
        rich_help_panel="Prompts, judges and other files",
    ),
]
Prediction = Annotated[
    str,
    typer.Option(
        metavar="KIND",
        help="What the denoiser of your own --model predicts, where nothing in it says so: epsilon or "
        "v_prediction. Elsewhere: --model NAME:prediction=epsilon.",
        show_default=False,
        rich_help_panel="Model",
    ),
]
Config = Annotated[
    str,
    typer.Option(
        metavar="PATH|ID",
        help="A diffusers folder or hub model whose configuration and tokenizer a checkpoint file takes. "
        "Elsewhere: --model FILE:config=FOLDER.",
        show_default=False,
        rich_help_panel="Model",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE[:COLUMN]",
        help="A CSV, or a .txt with one prompt per line, in place of the task's prompt set; COLUMN holds "
        "the prompts where several could.",
        rich_help_panel="Prompts, judges and other files",
    ),
]
Guidance = Annotated[
    str,
    typer.Option(
        metavar="own|SCALE",
        help="Each row's own guidance, or one for all rows.",
        rich_help_panel="Prompts, judges and other files",
    ),
]
Protocol = Annotated[
    str,
    typer.Option(
        metavar="default|paper",
        help="paper: prompts, judge and guidance of the task's paper, which are not all shipped.",
        rich_help_panel="Prompts, judges and other files",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Processes that share the cells, by Ray (extra `ray`); each loads the models. Default: 1, or "
        "with --ray-address one on each GPU or else on each machine.",
        show_default=False,
        rich_help_panel="How it is computed",
    ),
]
RayAddress = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT|auto",
        help="Compute on an existing cluster of Ray, whose machines share the folders of --results and "
        'BENCH_CACHE. The page "Several processes and machines" has a script for Slurm.',
        show_default=False,
        rich_help_panel="How it is computed",
    ),
]
Parts = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Also time so many processes, each with a part of the prompts."
    ),
]
Results = Annotated[
    Path,
    typer.Option(metavar="FOLDER", help="Folder of records.", rich_help_panel="How it is computed"),
]
Corrected = Annotated[
    str,
    typer.Option(
        metavar="FILE|auto",
        help="Rates corrected for the judge's errors, as FILE.json or the shipped judges' own say.",
        show_default=False,
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at a record that cannot be used (exit 5).")
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON.", rich_help_panel="What is printed"),
]
Recompute = Annotated[
    bool | None,
    typer.Option(
        "--recompute/--no-recompute",
        help="Erase with less memory and a third more time: keep few activations, compute them again "
        "(gradient checkpointing). By default where a GPU has less than 30 GB free.",
        show_default=False,
        rich_help_panel="How it is computed",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Compile the denoiser (torch.compile): minutes once, then faster passes.",
        rich_help_panel="How it is computed",
    ),
]
Split = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Attack a cell's prompts in parts of N; workers without a cell of their own take parts of "
        "others'. How a cell is split decides the last bits of what is found, not who takes which part.",
        show_default=False,
        rich_help_panel="How it is computed",
    ),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Compute again what is there already, records and cached pieces; if it is stopped, "
        "the same command resumes.",
        rich_help_panel="How it is computed",
    ),
]

MaxHours = Annotated[
    float | None,
    typer.Option(
        metavar="H",
        help="Begin no cell that would take longer than what is left of this time; exit code 6 says that "
        "cells are left, and the same command goes on.",
        show_default=False,
        rich_help_panel="How it is computed",
    ),
]
Images = Annotated[
    bool | None,
    typer.Option(
        "--images/--no-images",
        help="Keep images and draw one grid per cell; by default not those of which only features "
        "are measured, as for FID.",
        show_default=False,
        rich_help_panel="What is kept of images",
    ),
]
KeepUnsafe = Annotated[
    bool,
    typer.Option(
        "--keep-unsafe-images",
        help="Keep photographs for an nsfw concept as they are; else only blurred ones. Grids "
        "are blurred in any case.",
        rich_help_panel="What is kept of images",
    ),
]


@dataclass(frozen=True)
class Request:
    """The options that say which cells are meant."""

    method: Methods = None
    attack: Attacks = None
    task: Tasks = None
    model: Model = "emoji-sd"
    erase: Erase = None
    seed: Seeds = None
    erase_seed: EraseSeeds = None
    limit: Limit = None
    dtype: DrawnIn = "auto"
    asset: Assets = None
    world: World = None
    unet: Unet = None
    text_encoder: TextEncoder = None
    prediction: Prediction = ""
    config: Config = ""
    prompts: Prompts = None
    judge: Judge = ""
    guidance: Guidance = "own"
    protocol: Protocol = "default"
    concept: OwnConcept = ""
    kind: Kind = ""
    anchor: Anchor = ""
    floors: Floors = False
    matrix: MatrixFile = None
    suite: Suite = None

    def specs(self, stated: Collection[str] = (), device: str = "cpu") -> tuple[Spec, ...]:
        """Return the requests, checked: one for each seed, and for each part of a matrix.

        Args:
            stated: The options that were given, which pick from a matrix or replace what it says.
            device: Where they run, which decides on the type of drawing if nobody does.
        """
        from bench.plan.matrix import read_matrix, seeded, suite

        asked = [*map(read_matrix, self.matrix or ()), *map(suite, self.suite or ())]
        if len(asked) > 1:
            both = "both" if self.matrix and self.suite else f"{len(asked)}"
            raise SpecError(f"expected one --matrix or --suite, got {both}")
        axes = {"methods": self.method, "attacks": self.attack, "tasks": self.task}
        given = {axis: names for axis, names in axes.items() if names and axis[:-1] in stated}
        parts = (
            [self._with(part, stated) for part in asked[0].only(given).parts] if asked else [self]
        )
        return tuple(
            spec
            for part in parts
            for spec in seeded(
                part.spec(device), tuple(part.seed or ()), tuple(part.erase_seed or ())
            )
        )

    def _with(self, part: Part, stated: Collection[str]) -> Request:
        """Return the request with what a part of a matrix says, as far as no option says it.

        Methods, attacks and tasks are the part's: what options say of them is in it already.
        """
        lists = {"seed": part.seeds, "erase_seed": part.erase_seeds, "erase": part.erase}
        guidance = {} if part.guidance is None else {"guidance": f"{part.guidance:g}"}
        single = ("model", "limit", "dtype", "world", "prompts", "judge", "protocol", "floors")
        said = {
            **{name: list(values) for name, values in lists.items()},
            **{name: getattr(part, name) for name in single},
            **guidance,
        }
        return replace(
            self,
            method=list(part.methods),
            attack=list(part.attacks),
            task=list(part.tasks),
            **{k: v for k, v in said.items() if k not in stated},
        )

    def spec(self, device: str) -> Spec:
        """Return the request for the first seed, checked."""
        from bench.core.devices import is_gpu
        from bench.plan.spec import Spec
        from bench.plugins.registry import Ref
        from bench.sources.catalog import joined, model_info
        from bench.tasks.promptsets import scale

        model = joined(self.model, prediction=self.prediction, config=self.config)
        world = model_info(model, cast("Any", self.world)).world
        dtype = self.dtype
        if dtype == "auto":
            own = world == "photo" and self.protocol != "paper"
            dtype = "bf16" if own and is_gpu(device) else "fp32"
        look = first_look(
            self.concept, world, self.prompts, self.judge, kind=self.kind, anchor=self.anchor
        )
        return Spec(
            model,
            self._methods(),
            tuple(Ref.parse(text) for text in self.attack or ("none",)),
            (*look, *(self.task or ())),
            0,
            self.limit,
            dtype,
            given(self.asset),
            cast("Any", self.world),
            None if look else self.prompts,
            "" if look else self.judge,
            None if self.guidance == "own" else scale(self.guidance, "--guidance"),
            cast("Any", self.protocol),
            self.floors,
            erase=tuple(self.erase or ()),
        )

    def _methods(self) -> tuple[Ref, ...]:
        """Return the methods, and the one that ``--unet`` and ``--text-encoder`` are short for."""
        from bench.plugins.registry import Ref

        paths = {"unet": self.unet, "text_encoder": self.text_encoder}
        external = {name: path for name, path in paths.items() if path is not None}
        methods = tuple(Ref.parse(text) for text in self.method or ())
        return (*methods, Ref("external", external)) if external else methods


def request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a :class:`Request`; its first argument is what they ask for."""
    _, *others = inspect.signature(command).parameters.values()
    hints = get_type_hints(Request, include_extras=True)
    hints |= get_type_hints(command, include_extras=True) | {"ctx": typer.Context}
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [inspect.Parameter(f.name, keyword, default=f.default) for f in fields(Request)]
    ctx = inspect.Parameter("ctx", keyword)
    parameters = [ctx, *own, *(p.replace(kind=keyword) for p in others)]

    def call(ctx: typer.Context, **options: Any) -> None:
        asked = Request(**{field.name: options.pop(field.name) for field in fields(Request)})
        stated = [
            field.name
            for field in fields(Request)
            if (source := ctx.get_parameter_source(field.name)) and source.name == "COMMANDLINE"
        ]
        command(asked.specs(stated, options.get("device", "cpu")), **options)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__annotations__ = {p.name: hints[p.name] for p in parameters}
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(annotation=hints[p.name]) for p in parameters]
    )
    return call


def first_look(
    concept: str,
    world: World_,
    prompts: Path | None,
    judge: str,
    *,
    kind: str = "",
    anchor: str = "",
) -> tuple[Entry, ...]:
    """Return the task that ``--concept`` is short for, if it is given; prompts and judge are its own."""
    if concept:
        from bench.tasks.own import first_look

        return (first_look(concept, world, prompts, judge, kind=kind, anchor=anchor),)
    if alone := "--kind" if kind else "--anchor" if anchor else "":
        raise SpecError(f"{alone} is for --concept: give --concept as well")
    return ()


def given(asset: list[str] | None) -> dict[str, Path]:
    """Return the paths of assets that the user gave, by name."""
    pairs = [text.partition("=") for text in asset or ()]
    if bad := [name for name, _, path in pairs if not path]:
        raise SpecError(f"--asset: expected NAME=PATH, got {bad[0]!r}")
    from bench.sources.assets import check_names

    check_names(name for name, _, _ in pairs)
    return {name: Path(path) for name, _, path in pairs}
