"""Computes one cell: erase, attack, generate, judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from bench.core.devices import restart_peak
from bench.core.errors import ContractError, IncompatibleError, PluginError
from bench.core.protocols import Adversarial
from bench.core.types import Prompt, Sample
from bench.engine.attack import CellAttack
from bench.engine.erase import Erased, Eraser
from bench.engine.guard import guard
from bench.engine.images import Images, Source
from bench.engine.judge import Judges, judge_samples, unfit
from bench.engine.provenance import environment, names_of, protocol
from bench.engine.replay import Replay, of_row
from bench.engine.settings import Settings, timed
from bench.engine.stream import Stream
from bench.models.diffusers import DiffusersModel
from bench.plan.cell import Cell
from bench.plan.plan import Job
from bench.plugins.registry import create
from bench.store.artifacts import Artifacts
from bench.store.metrics import Measurement, rate
from bench.store.record import Record, Row
from bench.tasks.tasks import Task


class Runner:
    """Computes cells, and keeps models, judges and images between them.

    Args:
        settings: How.
        erasures: Another cache for erasures alone.
    """

    def __init__(self, settings: Settings, erasures: Artifacts | None = None) -> None:
        self.settings = settings
        self._eraser = Eraser(replace(settings, artifacts=erasures or settings.artifacts))
        self._images = Images(settings)
        self._judges = Judges(settings)
        self._stream = Stream(settings, self._judges)

    def run(self, job: Job) -> Record:
        """Return the record of a cell; a plug-in's failure becomes a record, not a crash."""
        found, settings = self._record(job), self.settings
        made_with = environment(
            settings.device, compiled=settings.compiled, names=names_of(job.cell, job.task)
        )
        batches = {"batch": str(settings.batch_size)}  # as threads, they decide the last bits
        if settings.split:
            batches["split"] = str(settings.split)
        return replace(found, environment=made_with | batches)

    def _record(self, job: Job) -> Record:
        cell, space = job.cell, "prompt"
        restart_peak(self.settings.device)
        if job.problem:
            return Record(cell, "failed", reason=job.problem)
        try:
            with guard(f"attack {cell.attack.name}"):
                space = create("attacks", cell.attack).threat.space
            return replace(self._run(job), space=space)
        except IncompatibleError as exc:
            return Record(cell, "skipped", reason=str(exc), space=space)
        except PluginError as exc:
            if isinstance(exc, ContractError):  # a model may be changed: drop all
                self._eraser.forget()
                self._images.keep_only("")
            return Record(cell, "failed", reason=f"{type(exc).__name__}: {exc}", space=space)
        except torch.OutOfMemoryError as exc:
            self._eraser.forget()
            reason = f"out of memory: {str(exc).partition('. ')[0]}; give --dtype bf16 or a larger device"
            return Record(cell, "failed", reason=reason, space=space)

    def _run(self, job: Job) -> Record:
        seconds: dict[str, float] = {}
        cell, task = job.cell, job.task
        prompts = task.prompts[: cell.prompts]
        with timed(seconds, "erase"):
            erased = self._victim(cell, task)
        if task.streamed:
            measured = self._stream.measure(cell, task, prompts, self._source(erased), seconds)
            rows: tuple[Row, ...] = ()
        else:
            measured, rows = self._judge(job, prompts, erased, seconds)
        return Record(
            cell,
            "ok",
            measurements=measured,
            rows=rows,
            erasure=erased.card,
            protocol=protocol(cell, task, erased.model),
            seconds={stage: round(s, 3) for stage, s in seconds.items()},
            excluded=task.excluded,
        )

    def _judge(
        self,
        job: Job,
        prompts: Sequence[Prompt],
        erased: Erased,
        seconds: dict[str, float],
    ) -> tuple[dict[str, Measurement], tuple[Row, ...]]:
        """Attack if asked to, make the images, and judge each."""
        if job.task.role == "target" and job.cell.attacked:
            with timed(seconds, "attack"):
                found = self._attack(job, erased).run(prompts)
        else:
            found = [Adversarial(prompt) for prompt in prompts]
        return self._draw_and_judge(job, prompts, erased, found, seconds)

    def _draw_and_judge(
        self,
        job: Job,
        prompts: Sequence[Prompt],
        erased: Erased,
        found: Sequence[Adversarial],
        seconds: dict[str, float],
    ) -> tuple[dict[str, Measurement], tuple[Row, ...]]:
        cell, task = job.cell, job.task
        # Success is never taken from the attack: images are made again and judged again.
        with timed(seconds, "generate"):
            own = self._images.make(erased, prompts, "generate")
            attacked = self._images.replay(erased, found)
        with timed(seconds, "judge"):
            measured, rows = judge_samples(
                self._judges, cell, task, prompts, lambda: [own], lambda: [attacked], found
            )
        if erased.model.screen:
            black = [None if unfit(s) else s.image.getbbox() is None for s in attacked]
            measured["blacked-out"] = rate(black)
        return measured, rows

    def again(self, job: Job, rows: Sequence[Row]) -> tuple[dict[str, Any], dict[str, Row]]:
        """Draw and judge some prompts again from what their rows say that an attack found.

        Returns:
            The erasure's card, and the new rows by id; what is in no row and not in the cache is left out.
        """
        cell, task = job.cell, job.task
        erased = self._victim(cell, task)
        known = {prompt.id: prompt for prompt in task.prompts}
        beyond = [known[row.id] for row in rows if row.beyond and row.adversarial_noise is None]
        found = Replay(self.settings.artifacts, cell.attack_key, erased.model).load(beyond)
        found |= {
            row.id: of_row(known[row.id], row)
            for row in rows
            if not row.beyond or row.adversarial_noise is not None
        }
        prompts = [known[name] for name in found]
        _, new = self._draw_and_judge(job, prompts, erased, [found[p.id] for p in prompts], {})
        return erased.card, {row.id: row for row in new}

    def help(self, job: Job, place: float) -> None:
        """Take parts of a cell that another process computes, from a place (0 to 1) on."""
        cell, task = job.cell, job.task
        erased, prompts = self._victim(cell, task), task.prompts[: cell.prompts]
        if task.streamed:
            self._stream.help(cell, task, prompts, self._source(erased), place)
        else:
            self._attack(job, erased).help(prompts, place)

    def model(self, cell: Cell) -> DiffusersModel:
        """Return a cell's base model in the type that is drawn in, loaded once."""
        return self._eraser.original(cell)

    def erase(self, cell: Cell) -> Erased:
        """Return the erased model of a cell: from memory, from its delta, or made now."""
        return self._eraser.erase(cell)

    def samples(self, job: Job, n: int) -> list[tuple[Sample, Sample, Sample]]:
        """Return original, erased and attacked sample of the first ``n`` prompts, for a picture."""
        cell, task = job.cell, job.task
        prompts = task.prompts[: min(n, cell.prompts)]
        erased = self._victim(cell, task)
        original = replace(self._eraser.unerased(cell), unsafe=erased.unsafe)
        found = Replay(self.settings.artifacts, cell.attack_key, erased.model).load(prompts)
        groups = (
            self._images.make(original, prompts, "picture"),
            self._images.make(erased, prompts, "picture"),
            self._images.replay(erased, [found.get(p.id, Adversarial(p)) for p in prompts]),
        )
        return list(zip(*groups, strict=True))

    def _source(self, erased: Erased) -> Source:
        return Source(
            [erased.key, asdict(erased.model.sampling)],
            lambda prompts, shard: self._images.make(erased, prompts, "generate", shard),
            screened=erased.model.screen is not None,
        )

    def _attack(self, job: Job, erased: Erased) -> CellAttack:
        original = self._eraser.original(job.cell)
        criterion = self._judges.criterion(job.task.judge)
        return CellAttack(job, erased.model, original, criterion, self.settings)

    def _victim(self, cell: Cell, task: Task) -> Erased:
        erased = self._eraser.victim(cell, task)
        self._images.keep_only(erased.key)
        return erased
