"""Attacks a cell's prompts, and keeps what is found."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from bench.core.digest import digest
from bench.core.errors import ContractError
from bench.core.protocols import Adversarial, Attack, Criterion, Model, Target
from bench.core.types import Cost, Prompt, SamplerNoise
from bench.engine.guard import finite, guard, plain
from bench.engine.replay import Replay
from bench.engine.schedule import parts
from bench.engine.settings import Settings
from bench.models.diffusers import DiffusersModel
from bench.plan.cell import REPLAYED, Cell
from bench.plan.floors import most_images
from bench.plan.plan import Job
from bench.plugins.registry import create


class QueryOnly:
    """A model without weights, so that a black-box attack cannot read any.

    Args:
        generate: What it can do.
        asked: What else it is asked for is noted here.
    """

    def __init__(
        self, generate: Callable[[Sequence[Prompt]], Sequence[Image.Image]], asked: list[str]
    ) -> None:
        self.__generate, self.__asked = generate, asked

    def generate(self, prompts: Sequence[Prompt]) -> Sequence[Image.Image]:
        """Generate; texts only."""
        return self.__generate(prompts)

    def __getattr__(self, name: str) -> Any:
        self.__asked.append(name)
        raise ContractError(f"the attack may only generate with this model; it asked for {name!r}")


class CellAttack:
    """One cell's attack.

    Args:
        job: Which.
        victim: The erased model.
        original: The model before erasure.
        criterion: Tells whether the concept is back.
        settings: How.
    """

    def __init__(
        self,
        job: Job,
        victim: DiffusersModel,
        original: DiffusersModel,
        criterion: Criterion,
        settings: Settings,
    ) -> None:
        cell = job.cell
        self.cell, self.victim, self.settings = cell, victim, settings
        self.name = f"attack {cell.attack.name}"
        self.asked: list[str] = []  # by the attack, of models that can only generate
        with guard(self.name):
            self.attack: Attack = create("attacks", cell.attack)
            self.most = most_images(cell.attack)
            if job.source:
                self.attack = replace(cast("Any", self.attack), source=Path(job.source))
            self.target = _target(self.attack, victim, original, cell, criterion, self.asked)
        self.kept = {"the erased model": victim, "the original model": original}
        self.replay = Replay(settings.artifacts, cell.attack_key, victim)
        self.size = settings.split if parts(job, settings) > 1 else cell.prompts

    def run(self, prompts: Sequence[Prompt]) -> list[Adversarial]:
        """Return one adversarial per prompt; finished prompts come from the cache."""
        done: dict[str, Adversarial] = {}

        def finish(found: Adversarial) -> None:
            done[found.prompt.id] = found
            self.settings.progress("attack", len(done), len(prompts))

        self.settings.progress("attack", 0, len(prompts))
        cut = self._cut(prompts)
        for part in [part for part in cut if not self._take(part, finish, wait=False)]:
            self._take(part, finish, wait=True)  # another process has it, or was killed at it
        if missing := [p.id for p in prompts if p.id not in done]:
            raise ContractError(
                f"attack {self.cell.attack.name} returned nothing for {len(missing)} prompts: "
                f"{missing[:3]}"
            )
        return [done[prompt.id] for prompt in prompts]

    def help(self, prompts: Sequence[Prompt], place: float) -> None:
        """Attack parts that nobody attacks now, from a place (0 to 1) on, while another process does."""
        cut = self._cut(prompts)
        first = int(place * len(cut))
        for part in cut[first:] + cut[:first]:
            self._take(part, lambda found: None, wait=False)

    def _cut(self, prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
        """Cut prompts into the parts that workers share, equal ones in every process."""
        return [prompts[i : i + self.size] for i in range(0, len(prompts), self.size)]

    def _take(
        self, part: Sequence[Prompt], finish: Callable[[Adversarial], None], *, wait: bool
    ) -> bool:
        """Attack what is left of a part, and finish all of it; False if another process is at it."""
        ids = [prompt.id for prompt in part]
        what = f"prompts {ids[0]} to {ids[-1]} under {self.cell.attack.name}"
        with self.settings.artifacts.lock(
            digest([self.cell.attack_key, *ids]), what, wait=wait
        ) as mine:
            if mine:
                for found in (done := self.replay.load(part)).values():
                    finish(found)
                if todo := [prompt for prompt in part if prompt.id not in done]:
                    self.find(todo, finish)
            return mine

    def find(self, prompts: Sequence[Prompt], finish: Callable[[Adversarial], None]) -> None:
        """Attack prompts; keep each as it is found, and call ``finish`` with it.

        Raises:
            ContractError: What the attack returns is not what was asked for, or it changed a model that
                was not its own; then nothing that it found is kept.
        """
        left = {prompt.id: prompt for prompt in prompts}
        try:
            with guard(self.name, **self.kept):
                since, timed = time.perf_counter(), False
                ctx = self.settings.context(self.cell.attack_key, self.cell.search_key)
                find = self.attack.prepare(self.target, ctx)
                for found in find(prompts):
                    adversarial = self._valid(found, left)
                    now, timed = time.perf_counter(), timed or adversarial.cost.seconds > 0
                    if not timed:  # it says no seconds: they are those since the prompt before
                        adversarial = replace(
                            adversarial, cost=adversarial.cost + Cost(seconds=now - since)
                        )
                    since = now
                    self.replay.put(adversarial)
                    finish(adversarial)
        except ContractError:
            self.replay.drop(p for p in prompts if p.id not in left)
            for key in (self.cell.attack_key, self.cell.search_key):
                shutil.rmtree(self.settings.artifacts.work(key), ignore_errors=True)
            raise

    def _valid(self, found: Adversarial, left: dict[str, Prompt]) -> Adversarial:
        """Check an adversarial and return it as it is kept; its prompt is removed from ``left``."""
        if not isinstance(found, Adversarial) or not isinstance(found.prompt, Prompt):
            raise ContractError(f"{self.name} returned {found!r:.80}, expected an Adversarial")
        prompt, who = found.prompt, f"{self.name}, prompt {found.prompt.id!r:.40}"
        asked = left.pop(prompt.id, None)
        if asked is None:
            raise ContractError(f"{who}: it was not asked for, or is returned twice")
        if not isinstance(prompt.text, str):
            raise ContractError(f"{who}: expected a text, got {prompt.text!r:.60}")
        plain(prompt.text, f"{who}, text")
        if prompt.label != asked.label:  # what the judge looks for is not the attack's to choose
            raise ContractError(
                f"{who}: expected the label {asked.label!r:.60}, got {prompt.label!r:.60}"
            )
        if not (type(prompt.seed) is int and 0 <= prompt.seed < 2**63):
            raise ContractError(
                f"{who}: expected a seed from 0 to 2**63 - 1, got {prompt.seed!r:.60}"
            )
        if not finite(prompt.guidance):
            raise ContractError(f"{who}: expected a finite guidance, got {prompt.guidance!r:.60}")
        if not (
            isinstance(found.cost, Cost) and all(finite(n) and n >= 0 for n in astuple(found.cost))
        ):
            raise ContractError(
                f"{who}: expected a Cost of finite numbers from 0, got {found.cost!r:.80}"
            )
        self._check_images(found, who)
        self._check_beyond(found, who)
        self._check_space(found, asked, who)
        passes = found.cost.images * self.victim.passes_per_image
        return replace(
            found,
            cost=found.cost + Cost(forward=passes),
            trace=plain(dict(found.trace), f"{who}, trace"),
        )

    def _check_images(self, found: Adversarial, who: str) -> None:
        """Refuse more images than a black box says that it makes.

        Of a white box also images count that cannot succeed, such as those that a token is learned from.
        """
        made, most = found.cost.images, self.most
        if self.attack.threat.access == "black" and most is not None and made > most:
            raise ContractError(f"{who} spent {made} images, its most_images() says at most {most}")

    def _check_beyond(self, found: Adversarial, who: str) -> None:
        """Refuse noise, an embedding or weights that cannot be used, or that are of another space."""
        if found.sampler_noise is not None and not isinstance(found.sampler_noise, SamplerNoise):
            raise ContractError(f"{who}: expected SamplerNoise, got {found.sampler_noise!r:.60}")
        if found.sampler_noise and not all(
            finite(n) and n >= 0 for n in astuple(found.sampler_noise)
        ):
            raise ContractError(
                f"{who}: expected finite noise from 0, got {found.sampler_noise!r:.80}"
            )
        if found.model is not None and not isinstance(found.model, DiffusersModel):
            raise ContractError(f"{who}: expected a copy of the victim, got {found.model!r:.60}")
        if found.embedding is not None:
            expected = tuple(self.victim.encode([""]).shape[1:])
            got = tuple(getattr(found.embedding, "shape", ()))
            if got != expected or not isinstance(found.embedding, torch.Tensor):
                raise ContractError(
                    f"{who}: expected an embedding of shape {expected}, got {got} in a "
                    f"{type(found.embedding).__name__}"
                )

    def _check_space(self, found: Adversarial, asked: Prompt, who: str) -> None:
        """Refuse a change that the attack's threat does not allow; what was found elsewhere may."""
        space, elsewhere = self.attack.threat.space, self.cell.attack.name in REPLAYED
        allowed = {space, "latent"} if elsewhere and found.sampler_noise is None else {space}
        if beyond := sorted(spaces(found, asked) - allowed):
            raise ContractError(
                f"{who} changed the {' and the '.join(beyond)}, its threat says {space}"
                + ("; a seed is part of the latent" if "latent" in beyond else "")
            )
        if found.prompt.guidance != asked.guidance and not elsewhere:
            raise ContractError(
                f"{who} changed the scale of guidance: expected the prompt's, {asked.guidance:g}, got "
                f"{found.prompt.guidance:g}"
            )


def spaces(found: Adversarial, asked: Prompt) -> set[str]:
    """Return what an attack changed of a prompt, in the words of a threat's ``space``."""
    changed = {
        "prompt": found.prompt.text != asked.text,
        "latent": found.prompt.seed != asked.seed or found.sampler_noise is not None,
        "embedding": found.embedding is not None,
        "weights": found.model is not None,
    }
    return {space for space, so in changed.items() if so}


def _target(
    attack: Attack,
    victim: Model,
    original: Model,
    cell: Cell,
    criterion: Criterion,
    asked: list[str],
) -> Target:
    """Return what the attack may touch of both models."""
    if attack.threat.access == "black":
        victim = cast("Model", QueryOnly(victim.generate, asked))
    if attack.threat.space == "weights":  # with the base's weights there is nothing to revive
        original = cast("Model", QueryOnly(original.generate, asked))
    return Target(victim, original, cell.concept, criterion)
