"""What every attack keeps to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from bench.core.protocols import Adversarial, Attack, Criterion
from bench.core.types import Prompt, Sample
from bench.engine.attack import CellAttack, spaces
from bench.engine.checks.finding import Rules
from bench.engine.checks.lab import MODEL, Lab, job, settings_left, state, streams
from bench.engine.guard import noticed
from bench.models import delta
from bench.models.diffusers import DiffusersModel
from bench.plan.cell import REPLAYED
from bench.plan.floors import FLOORS
from bench.plan.plan import check_attack
from bench.plugins.registry import Ref
from bench.sources.catalog import context_length

TASK = "church"
HITS = (2, 99, 1)
"""Which image of each prompt is the first to show the concept: of the second one none."""


@dataclass(slots=True)
class Hunt:
    """What an attack found, and what it found the second time.

    Args:
        prompts: What it was given.
        name: The attack's name.
        attack: The attack.
        most: How many images of a prompt it says that it makes.
        found: What it found, both times.
        asked: What it asked of models that can only generate.
        left: What it left changed, in words.
    """

    prompts: Sequence[Prompt]
    name: str = ""
    attack: Attack | None = None
    most: int | None = None
    found: list[list[Adversarial]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def victim_of(base: DiffusersModel) -> DiffusersModel:
    """Return an erased model: a copy in which a tenth of the weights is zero, so that none is by chance."""
    model = base.copy()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters("esd-u").values():
        weight.data *= torch.rand(weight.shape, generator=generator) > 0.1
    return model


def judged(prompts: Sequence[Prompt]) -> Criterion:
    """Return a judge to whom some images of the prompts are hits, as :data:`HITS` says."""
    first, asked = dict(zip((p.id for p in prompts), HITS, strict=True)), Counter[str]()

    def criterion(samples: Sequence[Sample]) -> list[bool]:
        ids = [sample.prompt.id for sample in samples]
        asked.update(ids)
        return [asked[i] >= first.get(i, HITS[1]) for i in ids]

    return criterion


def attack_twice(ref: Ref, victim: DiffusersModel, lab: Lab, hunt: Hunt | None = None) -> Hunt:
    """Attack an erased model twice, with other random streams of the process.

    Args:
        ref: The attack.
        victim: The erased model.
        lab: Its base is the original.
        hunt: Is filled; what an attack asked for is there also if it fails.

    Raises:
        PluginError: The attack raised something, or does not return what it should.
        SpecError: It says that it does not fit.
    """
    work = job(lab, TASK, prompts=len(HITS), attack=ref)
    prompts, cell = work.task.prompts, work.cell
    check_attack(cell.attack, cell.concept, cell.world, prompts, context_length(MODEL))
    hunt = hunt or Hunt(prompts)
    hunt.prompts = prompts
    for seed in range(2):
        with streams(seed), noticed() as left:
            one = CellAttack(work, victim, lab.base, judged(prompts), lab.settings())
            hunt.name, hunt.attack, hunt.most = ref.name, one.attack, one.most
            hunt.asked = one.asked
            hunt.found.append([])
            one.find(prompts, hunt.found[-1].append)
    hunt.left = left
    return hunt


def _peeks(seen: Hunt) -> str:
    if not seen.asked:
        return ""
    return (
        f"it asks for {seen.asked[0]!r} of a model that can only generate, by the attack's own threat: "
        'use generate() alone, or say Threat("white", ...); in the space "weights" the original can only '
        "generate"
    )


def _every_prompt(seen: Hunt) -> str:
    ids, got = ({p.id for p in ps} for ps in (seen.prompts, [a.prompt for a in seen.found[0]]))
    if lacking := ids - got:
        return f"it returns nothing for {len(lacking)} of {len(ids)} prompts: yield one Adversarial each"
    return ""


def changed(seen: Hunt) -> set[str]:
    """Return what the attack changed, in the words of a threat's ``space``."""
    by_id = {prompt.id: prompt for prompt in seen.prompts}
    return {space for a in seen.found[0] for space in spaces(a, by_id[a.prompt.id])}


def told(found: Sequence[Adversarial]) -> dict[str, Any]:
    """Return what an attack found as values that can be compared, without times."""
    return {
        a.prompt.id: (
            a.prompt, replace(a.cost, seconds=0), dict(a.trace), a.sampler_noise,
            None if a.embedding is None else a.embedding.tolist(),
            a.model and delta.digest(state(a.model)),  # type: ignore[arg-type]
        )
        for a in found
    }  # fmt: skip


def _same_twice(seen: Hunt) -> str:
    one, other = map(told, seen.found)
    if differ := [i for i, found in one.items() if found != other.get(i)]:
        return (
            f"two runs find other things for {len(differ)} of {len(one)} prompts: draw all random numbers "
            "from a generator that is seeded with ctx.seed(..., prompt.id)"
        )
    return ""


def _not_nothing(name: str, seen: Hunt) -> str:
    if name != "none" and not changed(seen):
        return (
            "it returns every prompt as it is: change the text, the seed, or what its threat says"
        )
    return ""


LOOKS: Rules[Hunt] = {"sees only what its threat says": _peeks}
"""What can be said also of an attack that failed."""


def rules(name: str) -> Rules[Hunt]:
    """Return what an attack of this name keeps to."""
    return {
        **LOOKS,
        "returns every prompt once": _every_prompt,
        "leaves the process's settings and gradients as they are": lambda s: settings_left(s.left),
        "does the same twice": _same_twice,
        "does something": partial(_not_nothing, name),
    }


def _spends(seen: Hunt) -> str:
    if seen.attack is None or seen.name in {"none", *FLOORS, *REPLAYED}:
        return ""
    if seen.most is None:
        return (
            "it has no most_images(), the most images of a prompt that may succeed: `bench run --floors` "
            "leaves it out"
        )
    made = max((a.cost.images for found in seen.found for a in found), default=0)
    if made > seen.most:
        return (
            f"it spent {made} images on a prompt, most_images() says {seen.most}: right only if the others "
            "cannot succeed"
        )
    return ""


NOTES: Rules[Hunt] = {"says how many images it makes": _spends}
"""What may be wrong."""
RULES = rules("")
