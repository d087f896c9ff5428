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
) -> Run:
    """Run :func:`measure` in new processes: ``workers`` at once, or in the official way one per prompt."""
    every = range(job.cell.prompts)
    if way == "official":
        runs = [_process(job, way, settings, judge, dtype, [i]) for i in every]
        seconds, wall = sum(r.attack for r in runs), sum(r.wall for r in runs)
        peak, parts = max(r.peak_mb for r in runs), [[i] for i in every]
    else:
        parts = [list(every[i::workers]) for i in range(min(workers, job.cell.prompts))]
        threads = max(1, torch.get_num_threads() // workers)
        settings = replace(settings, batch_size=max(1, settings.batch_size // workers))
        start = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            one = partial(_process, job, way, settings, judge, dtype, threads=threads)
            runs = list(pool.map(one, parts))
        seconds, wall = max(r.attack for r in runs), time.perf_counter() - start
        peak = sum(r.peak_mb for r in runs)
    texts = {
        i: t
        for part, r in zip(parts, runs, strict=True)
        for i, t in zip(part, r.texts, strict=True)
    }
    found = tuple(texts[i] for i in every)
    return Run(way, job.cell.prompts, runs[0].timesteps, seconds, wall, peak, found)


def _process(
    job: Job,
    way: Way,
    settings: Settings,
    judge: bool,
    dtype: str,
    part: Sequence[int],
    threads: int = 0,
) -> Run:
    order = {
        "job": asdict(job),
        "way": way,
        "judge": judge,
        "dtype": dtype,
        "part": part,
        "threads": threads or torch.get_num_threads(),
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
    dtype: str = "fp32",
    scaling: bool = False,
) -> Table:
    """Time one cell's attack in both ways, each in processes of its own, and lay out what they took.

    Args:
        spec: One method, attack and task.
        settings: Device, batch and cache.
        console: Where progress is shown.
        workers: Time also so many processes that attack together.
        dtype: Type of the batched way; the official one is fp32.
        scaling: Batched only: 8, 16 and 32 prompts, and 50 timesteps.
    """
    (job,) = plan(spec)
    check_dtype(dtype)
    settings = replace(settings, device=use(settings.device))
    erase_cell(job.cell, settings, console)  # before the clock runs
    crews: list[tuple[Job, Way, int]] = [(job, "batched", n) for n in dict.fromkeys((1, workers))]
    order = [*crews, (job, "official", 1), *crews[::-1]]  # machines drift: once before, once after
    if scaling:
        order = [(each, "batched", workers) for each in scaled(job)]
    runs = [
        measure_apart(each, way, settings, judge=not scaling, workers=n, dtype=dtype)
        for each, way, n in order
    ]
    ways = [f"{way} x {n}" if n > 1 else way for _, way, n in order]
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
        notes += _ratios(ways[: len(crews)], runs)
        notes.append("batched before and after official, ratios of the mean")
    if workers > 1:
        notes.append(f"x {workers}: in {workers} processes")
    if dtype != "fp32":
        notes.append(f"batched in {dtype}, official in fp32")
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


def _ratios(ways: Sequence[str], runs: Sequence[Run]) -> Iterator[str]:
    """Say how much faster each batched way is; it ran before the official one, and after it."""
    official = runs[len(ways)]
    for way, *ours in zip(ways, runs[: len(ways)], runs[::-1], strict=False):
        wall, alone = (sum(getattr(r, key) for r in ours) / 2 for key in ("wall", "attack"))
        same = sum(a == b for a, b in zip(ours[0].texts, official.texts, strict=True))
        yield (
            f"{way}: {official.wall / wall:.1f} times as fast as official, without start and "
            f"loading {official.attack / alone:.1f} times, {same} of {official.prompts} adversarial "
            "texts equal"
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
    one_of_several = order["way"] == "batched" and order["part"][0] > 0
    console = Console(stderr=True, quiet=one_of_several)
    with console.status("") as status:
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
