"""Attacks a cell's prompts, alone or with workers, and keeps what is found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from PIL import Image

from bench.errors import ContractError, contract
from bench.models.diffusers import DiffusersModel
from bench.plan import Cell
from bench.protocols import Adversarial, Attack, Criterion, Model, Target
from bench.registry import create
from bench.replay import Replay
from bench.run.settings import Settings
from bench.types import Cost, Prompt
from bench.workers import Workers


class QueryOnly:
    """A model with its weights hidden, so that a black-box attack is one by construction."""

    def __init__(self, generate: Callable[[Sequence[Prompt]], Sequence[Image.Image]]) -> None:
        self.__generate = generate

    def generate(self, prompts: Sequence[Prompt]) -> Sequence[Image.Image]:
        """Generate; texts only."""
        return self.__generate(prompts)

    def __getattr__(self, name: str) -> Any:
        raise ContractError(f"the attack may only generate with this model; it asked for {name!r}")


class CellAttack:
    """One cell's attack.

    Args:
        cell: Which.
        victim: The erased model.
        original: The model before erasure.
        criterion: Tells whether the concept is back.
        settings: How.
        workers: Who.
    """

    def __init__(
        self,
        cell: Cell,
        victim: DiffusersModel,
        original: DiffusersModel,
        criterion: Criterion,
        settings: Settings,
        workers: Workers,
    ) -> None:
        self.cell, self.victim, self.workers = cell, victim, workers
        self.attack: Attack = create("attacks", cell.attack)
        self.target = _target(self.attack, victim, original, cell, criterion)
        self.settings = replace(settings, batch_size=max(1, settings.batch_size // workers.count))
        self.replay = Replay(settings.artifacts.attack(cell.attack_key), victim)

    def run(self, prompts: Sequence[Prompt]) -> list[Adversarial]:
        """Return one adversarial per prompt; finished prompts come from the cache."""
        shared = self.attack.threat.space in ("embedding", "weights")  # found once for all prompts
        workers = Workers() if shared else self.workers
        done = self.replay.load(prompts)
        todo = {prompt.id: prompt for prompt in prompts if prompt.id not in done}
        before = len(done)

        def progress(stage: str = "attack") -> None:
            finished = before + len(mine.intersection(done)) + workers.finished
            self.settings.progress(stage, finished, len(prompts))

        def finish(ids: Collection[str]) -> None:
            for found in self.find([p for name, p in todo.items() if name in ids]):
                done[found.prompt.id] = found
                progress()

        if todo:
            job = {"settings": self.settings.to_json(), "cell": asdict(self.cell)}
            with workers.share(job, list(todo)) as mine:
                progress()
                finish(mine)
            workers.wait(progress)
            done |= self.replay.load([p for name, p in todo.items() if name not in mine])
            if left := todo.keys() - done.keys() - mine:
                progress("attack, what a worker left undone")
                finish(left)
        if missing := [p.id for p in prompts if p.id not in done]:
            raise ContractError(
                f"attack {self.cell.attack.name} returned nothing for {len(missing)} prompts: "
                f"{missing[:3]}"
            )
        return [done[prompt.id] for prompt in prompts]

    def find(self, prompts: Sequence[Prompt]) -> Iterator[Adversarial]:
        """Attack prompts in this process; keep and yield each as it is found."""
        name = f"attack {self.cell.attack.name}"
        known = {prompt.id for prompt in prompts}
        with contract(name):
            find = self.attack.prepare(self.target, self.settings.context(self.cell.attack_key))
            for found in find(prompts):
                if not isinstance(found, Adversarial) or found.prompt.id not in known:
                    raise ContractError(f"{name} returned {found!r:.80}, expected an Adversarial")
                adversarial = _priced(found, self.victim)
                self.replay.put(adversarial)
                yield adversarial


def _target(
    attack: Attack,
    victim: Model,
    original: Model,
    cell: Cell,
    criterion: Criterion,
) -> Target:
    """Return what the attack may touch of both models."""
    if attack.threat.access == "black":
        victim = cast("Model", QueryOnly(victim.generate))
    if attack.threat.space == "weights":  # with the base's weights there is nothing to revive
        original = cast("Model", QueryOnly(original.generate))
    return Target(victim, original, cell.concept, criterion)


def _priced(found: Adversarial, model: DiffusersModel) -> Adversarial:
    """Add to an adversarial's cost the denoiser's passes that its images took."""
    passes = found.cost.images * model.passes_per_image
    return replace(found, cost=found.cost + Cost(forward=passes))
