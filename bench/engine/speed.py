"""How fast an attack runs: batched as here, and one prompt at a time as in the official code.

Both ways run the same attack on the same erased model, prompts and draws, and should find the same
adversarial texts; the batched way runs before and after the official one, because a machine's speed
drifts. The batched way attacks all prompts in one process, or an equal part in each of several. The
official way (Diffusion-MU-Attack) starts one process per prompt, makes two denoiser passes for guidance,
and loads the judge for every image. Our own loop runs both ways, so that only these three things differ.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from bench.core.devices import described, use
from bench.core.paths import ROOT
from bench.core.protocols import Attack, Model, Target
from bench.core.types import Context, Prompt, Sample, SamplerNoise
from bench.engine.local import erase_cell
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.models.diffusers import DiffusersModel
from bench.plan.plan import Job, plan
from bench.plan.spec import Spec
from bench.plugins.registry import create
from bench.report.frame import Figure, Line, Table
from bench.sources.catalog import check_dtype

Way = Literal["batched", "official"]
_COMMAND = (  # no code of the current folder; where this package is not installed, it is found as here
    f"import runpy, sys; sys.path.append({str(ROOT)!r}); "
    "runpy.run_module('bench.engine.speed', run_name='__main__')"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One timed attack.

    Args:
        way: How it ran.
        prompts: How many prompts were attacked.
        timesteps: How many timesteps the attack visits.
        attack: Seconds of the attack alone, models and erasure loaded before.
        wall: Seconds with the start of the process and the loading of everything.
        peak_mb: Largest resident memory at a time, of all processes, everything included.
        texts: What was found.
    """

    way: Way
    prompts: int
    timesteps: int
    attack: float
    wall: float
    peak_mb: int
    texts: tuple[str, ...]

    @property
    def per_hour(self) -> float:
        """Prompts attacked in an hour."""
        return 3600 * self.prompts / self.wall


class OneByOne(DiffusersModel):
    """The same model with one denoiser pass per row.

    Images of token ids, which tell our records whether the ids succeed apart from their string, are left
    out: the official code makes none. So the batched way does more, and the ratio is a lower bound.
    """

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        embeddings: Tensor | None = None,
        sampler_noise: Sequence[SamplerNoise] | None = None,
    ) -> list[Image.Image]:
        """Return one image per prompt; black ones in place of those of token ids."""
        if embeddings is not None:
            return [Image.new("RGB", (self.sampling.size,) * 2) for _ in prompts]
        return super().generate(prompts, sampler_noise=sampler_noise)

    def predict(self, latents: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Return what the batched pass returns, computed row by row."""
        times = t.expand(len(latents)) if t.dim() == 0 else t
        rows = [
            super(OneByOne, self).predict(latents[i : i + 1], times[i : i + 1], cond[i : i + 1])
            for i in range(len(latents))
        ]
        return torch.cat(rows)


@dataclass(frozen=True, slots=True)
class _Crew:
    """What is timed together: so many processes that attack in one way."""

    job: Job
    way: Way
    size: int
    dtype: str = "fp32"

    @property
    def name(self) -> str:
        words = [self.way, self.dtype * (self.dtype != "fp32"), f"x {self.size}" * (self.size > 1)]
        return " ".join(filter(None, words))


def measure(
    job: Job,
    way: Way,
    settings: Settings,
    *,
    judge: bool = True,
    part: Sequence[int] = (),
    dtype: str = "fp32",
) -> Run:
    """Run a cell's attack once and time it, in this process.

    Args:
        job: What is attacked, and how.
        way: Batched or official.
        settings: Device, batch and cache.
        judge: False lets no prompt succeed, so that every prompt costs the same.
        part: Which prompts, by place; all of the cell's by default.
        dtype: Type of both models' weights after the erasure, in the batched way; officially "fp32".
    """
    cell, task = job.cell, job.task
    prompts = [task.prompts[i] for i in part or range(cell.prompts)]
    runner = Runner(settings)
    cell = replace(cell, dtype=dtype if way == "batched" else "fp32")
    victim, original = runner.erase(cell).model, runner.model(cell)
    measure_ = task.judge
    evaluator = create("evaluators", measure_.evaluator)
    with TemporaryDirectory() as folder:
        batch = 1 if way == "official" else settings.batch_size
        ctx = Context(cell.attack_key, settings.device, Path(folder), batch)
        loaded = evaluator.prepare(ctx)

        def criterion(samples: Sequence[Sample]) -> list[bool]:
            if not judge:
                return [False] * len(samples)
            if way == "batched":
                scores = loaded(samples)
            else:
                scores = [score for s in samples for score in evaluator.prepare(ctx)([s])]
            return [s.value is not None and s.value >= measure_.threshold for s in scores]

        if way == "official":
            victim, original = _one_by_one(victim), _one_by_one(original)
        target = Target(cast("Model", victim), cast("Model", original), cell.concept, criterion)
        attack: Attack = create("attacks", cell.attack)
        start = time.perf_counter()
        found = {}
        for adversarial in attack.prepare(target, ctx)(prompts):
            found[adversarial.prompt.id] = adversarial.prompt.text
            settings.progress(f"{way}, {len(prompts)} prompts", len(found), len(prompts))
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    times = 50 if cell.attack.params.get("timesteps") == "official" else 10
    texts = tuple(found[p.id] for p in prompts)
    return Run(way, len(prompts), times, seconds, seconds, peak, texts)


def measure_apart(
    job: Job,
    way: Way,
    settings: Settings,
    *,
    judge: bool = True,
    workers: int = 1,
    dtype: str = "fp32",
    part: Sequence[int] = (),
) -> Run:
    """Run :func:`measure` in new processes, ``workers`` at once: in the official way one per prompt."""
    every = list(part or range(job.cell.prompts))
    workers = min(workers, len(every))
    parts = (
        [[i] for i in every] if way == "official" else [every[i::workers] for i in range(workers)]
    )
    threads = max(1, torch.get_num_threads() // workers)
    settings = replace(settings, batch_size=max(1, settings.batch_size // workers))
    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        one = partial(_process, job, way, settings, judge, dtype, threads=threads)
        runs = list(pool.map(one, parts, [i % workers > 0 for i in range(len(parts))]))
    wall = time.perf_counter() - start
    alone = [r.attack for r in runs]
    seconds = sum(alone) / workers if way == "official" else max(alone)
    peak = sum(sorted(r.peak_mb for r in runs)[-workers:])
    texts = dict[int, str]()
    for places, r in zip(parts, runs, strict=True):
        texts |= zip(places, r.texts, strict=True)
    found = tuple(texts[i] for i in every)
    return Run(way, len(every), runs[0].timesteps, seconds, wall, peak, found)


def _process(
    job: Job,
    way: Way,
    settings: Settings,
    judge: bool,
    dtype: str,
    part: Sequence[int],
    quiet: bool,
    threads: int,
) -> Run:
    order = {
        "job": asdict(job),
        "way": way,
        "judge": judge,
        "dtype": dtype,
        "part": part,
        "quiet": quiet,
        "threads": threads,
        "settings": settings.to_json(),
    }
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-c", _COMMAND],
        input=json.dumps(order),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - start
    raw: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Run(**{**raw, "wall": wall, "texts": tuple(raw["texts"])})


def compare(
    spec: Spec,
    settings: Settings,
    console: Console,
    *,
    workers: int = 1,
    dtypes: Sequence[str] = ("fp32",),
    scaling: bool = False,
    official: int | None = None,
) -> Table:
    """Time one cell's attack in both ways, each in processes of its own, and lay out what they took.

    Args:
        spec: One method, attack and task.
        settings: Device, batch and cache.
        console: Where progress is shown.
        workers: Time also so many processes that attack together, in both ways.
        dtypes: Types of the batched way, each timed; the official one is fp32.
        scaling: Batched only: 8, 16 and 32 prompts, and 50 timesteps.
        official: How many of the prompts are attacked in the official way, evenly spaced; by default all.
    """
    (job,) = plan(spec)
    for dtype in dtypes:
        check_dtype(dtype)
    settings = replace(settings, device=use(settings.device))
    erase_cell(job.cell, settings, console)  # before the clock runs
    n = job.cell.prompts
    some = min(official or n, n)
    part = [i * n // some for i in range(some)]
    sizes = list(dict.fromkeys((1, workers)))
    crews = [_Crew(job, "batched", size, dtype) for size in sizes for dtype in dtypes]
    theirs = [_Crew(job, "official", size) for size in sizes]
    order = [*crews, *theirs, *crews[::-1]]  # machines drift: once before, once after
    if scaling:
        order = [_Crew(each, "batched", workers, dtype) for dtype in dtypes for each in scaled(job)]
    runs = [
        measure_apart(
            each.job,
            each.way,
            settings,
            judge=not scaling,
            workers=each.size,
            dtype=each.dtype,
            part=part if each.way == "official" else (),
        )
        for each in order
    ]
    ways = [each.name for each in order]
    lines = tuple(_line(way, r) for way, r in zip(ways, runs, strict=True))
    cell = job.cell
    notes = [
        f"{cell.attack.name} on {cell.method.name}, {cell.task}, {described(settings.device)}, "
        f"{torch.get_num_threads()} threads",
        "s: the attack alone, and its share per prompt and timestep; wall: with start and loading",
    ]
    if scaling:
        notes.append("no prompt may succeed, so that each costs the same")
    else:
        notes += _ratios(ways, runs, len(theirs), part)
        notes.append("batched before and after official, ratios of the mean, per prompt")
        if some < n:
            notes.append(f"official on {some} of the {n} prompts, evenly spaced")
    if workers > 1:
        notes.append(f"x {workers}: in {workers} processes")
    if set(dtypes) != {"fp32"}:
        notes.append("official in fp32")
    columns = ("prompts", "t", "s", "s/prompt/t", "wall", "prompts/h", "peak MB")
    return Table("Speed of an attack", ("way",), columns, lines, "; ".join(notes))


def _line(way: str, r: Run) -> Line:
    figures = (
        Figure(r.prompts),
        Figure(r.timesteps),
        Figure(r.attack, digits=1),
        Figure(r.attack / r.prompts / r.timesteps, digits=3),
        Figure(r.wall, digits=1),
        Figure(r.per_hour, digits=0),
        Figure(r.peak_mb),
    )
    return Line((way,), figures)


def _ratios(
    ways: Sequence[str], runs: Sequence[Run], officials: int, part: Sequence[int]
) -> Iterator[str]:
    """Say how much faster each batched way is per prompt than each official one, which ran in between."""
    n = (len(ways) - officials) // 2
    theirs = dict(zip(ways[n : n + officials], runs[n : n + officials], strict=True))
    for i, way in enumerate(ways[:n]):
        ours = (runs[i], runs[-1 - i])
        for name, official in theirs.items():
            wall, alone = (
                getattr(official, key) / official.prompts * 2
                / sum(getattr(r, key) / r.prompts for r in ours)
                for key in ("wall", "attack")
            )  # fmt: skip
            same = sum(ours[0].texts[k] == t for k, t in zip(part, official.texts, strict=True))
            yield (
                f"{way}: {wall:.1f} times as fast as {name}, without start and loading "
                f"{alone:.1f} times, {same} of {official.prompts} adversarial texts equal"
            )


def scaled(job: Job) -> list[Job]:
    """Return the job with 8, 16 and 32 prompts, and with 8 prompts at 50 timesteps."""
    cell, count = job.cell, len(job.task.prompts)
    sizes = [replace(cell, prompts=min(n, count)) for n in (8, 16, 32)]
    params = {**cell.attack.params, "timesteps": "official"}
    cells = [*sizes, replace(sizes[0], attack=replace(cell.attack, params=params))]
    return [replace(job, cell=each) for each in cells]


def _one_by_one(model: DiffusersModel) -> OneByOne:
    twin = OneByOne(model.pipe, model.world, model.sampling, batch_size=1)
    twin.guidance, twin.screen, twin.refuse = model.guidance, model.screen, model.refuse
    return twin


def _main() -> None:
    from pydantic import TypeAdapter

    order = json.load(sys.stdin)
    torch.set_num_threads(order["threads"])
    with Console(stderr=True, quiet=order["quiet"]).status("") as status:
        settings = Settings.from_json(order["settings"])
        use(settings.device)
        settings = replace(
            settings,
            progress=lambda stage, done, total: status.update(f"{stage}: {done} of {total}"),
        )
        job = TypeAdapter(Job).validate_python(order["job"])
        options = {name: order[name] for name in ("judge", "part", "dtype")}
        run = measure(job, order["way"], settings, **options)
    sys.stdout.write(json.dumps(asdict(run)) + "\n")


if __name__ == "__main__":
    _main()
