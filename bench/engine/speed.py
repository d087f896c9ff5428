"""How fast an attack runs: batched as here, and one prompt at a time as in the official code.

Both ways run the same attack on the same erased model, prompts and draws, and should find the same
adversarial texts; the batched way runs before and after the official one, because a machine's speed
drifts. The batched way attacks all prompts in one process, or an equal part in each of several, as
``bench run --workers`` does. The official way (Diffusion-MU-Attack) starts a process a prompt, makes two
denoiser passes for an image's guidance, and loads the judge for every image; our own loop runs it, so
that only these habits differ.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor

from bench.core.protocols import Attack, Model, Target
from bench.core.types import Context, Prompt, Sample, SamplerNoise
from bench.engine import Runner, Settings
from bench.engine.workers import python
from bench.models.diffusers import DiffusersModel
from bench.plan.cell import Cell
from bench.plugins.registry import create
from bench.tasks.tasks import load_task

Way = Literal["batched", "official"]


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
    """The same model with one denoiser pass a row.

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
        """Return what the batched pass returns, a row at a time."""
        times = t.expand(len(latents)) if t.dim() == 0 else t
        rows = [
            super(OneByOne, self).predict(latents[i : i + 1], times[i : i + 1], cond[i : i + 1])
            for i in range(len(latents))
        ]
        return torch.cat(rows)


def measure(
    cell: Cell,
    way: Way,
    settings: Settings,
    *,
    judge: bool = True,
    part: Sequence[int] = (),
    dtype: str = "fp32",
) -> Run:
    """Run a cell's attack once and time it, in this process.

    Args:
        cell: What is attacked, and how.
        way: Batched or official.
        settings: Device, batch and cache.
        judge: False lets no prompt succeed, so that every prompt costs the same.
        part: Which prompts, by place; all of the cell's by default.
        dtype: Type of both models' weights after the erasure, in the batched way; officially "fp32".
    """
    task = load_task(cell.task, cell.world)
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
    cell: Cell,
    way: Way,
    settings: Settings,
    *,
    judge: bool = True,
    workers: int = 1,
    dtype: str = "fp32",
) -> Run:
    """Run :func:`measure` in fresh processes: ``workers`` at once, or officially one a prompt in turn."""
    every = range(cell.prompts)
    if way == "official":
        runs = [_process(cell, way, settings, judge, dtype, [i]) for i in every]
        seconds, wall = sum(r.attack for r in runs), sum(r.wall for r in runs)
        peak, parts = max(r.peak_mb for r in runs), [[i] for i in every]
    else:
        parts = [list(every[i::workers]) for i in range(min(workers, cell.prompts))]
        threads = max(1, torch.get_num_threads() // workers)
        settings = replace(settings, batch_size=max(1, settings.batch_size // workers))
        start = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            job = partial(_process, cell, way, settings, judge, dtype, threads=threads)
            runs = list(pool.map(job, parts))
        seconds, wall = max(r.attack for r in runs), time.perf_counter() - start
        peak = sum(r.peak_mb for r in runs)
    texts = {
        i: t
        for part, r in zip(parts, runs, strict=True)
        for i, t in zip(part, r.texts, strict=True)
    }
    found = tuple(texts[i] for i in every)
    return Run(way, cell.prompts, runs[0].timesteps, seconds, wall, peak, found)


def _process(
    cell: Cell,
    way: Way,
    settings: Settings,
    judge: bool,
    dtype: str,
    part: Sequence[int],
    threads: int = 0,
) -> Run:
    job = {
        "cell": asdict(cell),
        "way": way,
        "judge": judge,
        "dtype": dtype,
        "part": part,
        "threads": threads or torch.get_num_threads(),
        "settings": settings.to_json(),
    }
    start = time.perf_counter()
    done = subprocess.run(
        python("bench.engine.speed"),
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - start
    raw: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Run(**{**raw, "wall": wall, "texts": tuple(raw["texts"])})


def scaled(cell: Cell) -> list[Cell]:
    """Return the cell with 8, 16 and 32 prompts, and with 8 prompts at 50 timesteps."""
    count = len(load_task(cell.task, cell.world).prompts)
    sizes = [replace(cell, prompts=min(n, count)) for n in (8, 16, 32)]
    params = {**cell.attack.params, "timesteps": "official"}
    return [*sizes, replace(sizes[0], attack=replace(cell.attack, params=params))]


def _one_by_one(model: DiffusersModel) -> OneByOne:
    twin = OneByOne(model.pipe, model.world, model.sampling, batch_size=1)
    twin.guidance, twin.screen, twin.refuse = model.guidance, model.screen, model.refuse
    return twin


def _main() -> None:
    from pydantic import TypeAdapter
    from rich.console import Console

    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    one_of_several = job["way"] == "batched" and job["part"][0] > 0
    console = Console(stderr=True, quiet=one_of_several)
    with console.status("") as status:
        settings = replace(
            Settings.from_json(job["settings"]),
            progress=lambda stage, done, total: status.update(f"{stage}: {done} of {total}"),
        )
        cell = TypeAdapter(Cell).validate_python(job["cell"])
        options = {name: job[name] for name in ("judge", "part", "dtype")}
        run = measure(cell, job["way"], settings, **options)
    sys.stdout.write(json.dumps(asdict(run)) + "\n")


if __name__ == "__main__":
    _main()
