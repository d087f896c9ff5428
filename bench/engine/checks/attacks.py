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
from bench.engine.attack import CellAttack
from bench.engine.checks.finding import Rules
from bench.engine.checks.lab import MODEL, Lab, job, settings_left, state, streams
from bench.engine.guard import noticed
from bench.models import delta
from bench.models.diffusers import DiffusersModel
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
        attack: The attack.
        found: What it found, both times.
        asked: What it asked of models that can only generate.
        left: What it left changed, in words.
    """

    prompts: Sequence[Prompt]
    attack: Attack | None = None
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
            hunt.attack, hunt.asked = one.attack, one.asked
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
    spaces = set[str]()
    for a in seen.found[0]:
        asked = by_id[a.prompt.id]
        spaces |= {"prompt"} if a.prompt.text != asked.text else set()
        spaces |= {"latent"} if a.prompt.seed != asked.seed or a.sampler_noise else set()
        spaces |= {"embedding"} if a.embedding is not None else set()
        spaces |= {"weights"} if a.model is not None else set()
    return spaces


def _its_space(seen: Hunt) -> str:
    space = seen.attack.threat.space if seen.attack else ""
    if beyond := sorted(changed(seen) - {space}):
        return f"it changes the {' and the '.join(beyond)}, its threat says {space}"
    scales = {prompt.id: prompt.guidance for prompt in seen.prompts}
    if any(a.prompt.guidance != scales[a.prompt.id] for a in seen.found[0]):
        return "it changes the scale of guidance: keep the prompt's"
    return ""


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
        "changes only what its threat says": _its_space,
        "leaves the process's settings and gradients as they are": lambda s: settings_left(s.left),
        "does the same twice": _same_twice,
        "does something": partial(_not_nothing, name),
    }


RULES = rules("")
