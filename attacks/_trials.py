"""The loop of attacks that try one thing after the other for each prompt, first the prompt itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from attacks._resume import Resume, State
from bench import Adversarial, Attacker, Context, Cost, Model, Prompt, Sample, Target

Variant = Callable[[Prompt, int], Adversarial]
"""Returns the trial of a prompt in a round; all trials of a round are of the same kind."""


def first_success(
    target: Target,
    prompts: Sequence[Prompt],
    variant: Variant,
    rounds: int,
    ctx: Context,
    *,
    batch: int | None = None,
    alone: bool = False,
    stop: bool = True,
) -> Iterator[Adversarial]:
    """Try each prompt as it is, then its variants 1, 2, ... ``rounds``; yield the first that succeeds.

    If no variant succeeds, the last one is yielded. The cost has each trial's own cost and its share of the
    time. After a kill, variants that were tried are not tried again.

    Args:
        target: Victim and criterion.
        prompts: All are tried in a round before the next round begins.
        variant: Makes the trial of a prompt in a round; its trace is kept.
        rounds: Number of variants.
        ctx: Keeps what was tried.
        batch: Images per batch, after which finished prompts are yielded; by default all prompts.
        alone: Make, try and yield one variant at a time, because making one takes long.
        stop: Stop a prompt after its first success; ``False`` tries and counts all variants.
    """
    resume = Resume(ctx, [p.id for p in prompts])
    states = resume.load()
    tried = {p.id: _Tried.of(states[p.id]) if p.id in states else _Tried() for p in prompts}
    for done in range(rounds + 1):
        if rounds > 1:
            ctx.progress("rounds", done, rounds)
        now = [p for p in prompts if p.id in tried and tried[p.id].rounds == done]
        size = 1 if alone and done else batch or max(len(now), 1)
        for part in (now[i : i + size] for i in range(0, len(now), size)):
            start = time.perf_counter()
            trials = [variant(p, done) if done else Adversarial(p) for p in part]
            hits = judged(target, trials)
            share = Cost(images=1, seconds=(time.perf_counter() - start) / len(part))
            ready = []
            for prompt, trial, hit in zip(part, trials, hits, strict=True):
                own = tried[prompt.id]
                own.rounds, own.cost = done + 1, own.cost + trial.cost + share
                own.hits += [done] * hit
                if done == rounds or (hit and (stop or done == 0)):
                    del tried[prompt.id]
                    first = own.hits[0] if own.hits else done
                    best = trial if first == done else variant(prompt, first)
                    trace: dict[str, Any] = {"success": bool(own.hits), "round": first}
                    trace |= {} if stop else {"rounds_with_success": own.hits}
                    ready.append(replace(best, cost=own.cost, trace=trace | dict(best.trace)))
            yield from ready
            if ready or resume.due:
                resume.keep({name: own.state() for name, own in tried.items() if own.rounds})
    resume.keep({})


@dataclass
class _Tried:
    """What was tried for one prompt."""

    rounds: int = 0
    cost: Cost = field(default_factory=Cost)
    hits: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, state: State) -> _Tried:
        return cls(state.steps, Cost(**state.values["cost"]), state.values["hits"])

    def state(self) -> State:
        return State(self.rounds, {"cost": asdict(self.cost), "hits": self.hits})


def precise(model: Model) -> Model:
    """Return a copy of a model for training: a model in half precision is cast to float32."""
    import torch

    return model.cast("fp32") if model.dtype in {torch.bfloat16, torch.float16} else model.copy()


def charge_first(found: Iterator[Adversarial], setup: Cost) -> Iterator[Adversarial]:
    """Add the cost of what all prompts share to the first that is found, so that the sum is right."""
    for i, adversarial in enumerate(found):
        yield adversarial if i else replace(adversarial, cost=adversarial.cost + setup)


def with_model(
    target: Target, model: Model, trace: Mapping[str, Any], setup: Cost, ctx: Context
) -> Attacker:
    """Return the attack that makes the image of each prompt that fails again, with a changed model.

    Args:
        target: Victim and criterion.
        model: The changed copy of the victim.
        trace: The trace of each prompt.
        setup: What changing the model cost; the first prompt gets it.
        ctx: Keeps what was tried.
    """

    def variant(prompt: Prompt, _: int) -> Adversarial:
        return Adversarial(prompt, model=model, trace=trace)

    return lambda prompts: charge_first(
        first_success(target, prompts, variant, 1, ctx, batch=ctx.batch_size), setup
    )


def judged(target: Target, trials: Sequence[Adversarial]) -> list[bool]:
    """Make an image of each trial, all of the same kind; return whether it shows the concept."""
    import torch

    first, more = trials[0], dict[str, Any]()
    if first.embedding is not None:
        more["embeddings"] = torch.stack([a.embedding for a in trials if a.embedding is not None])
    if first.sampler_noise is not None:
        more["sampler_noise"] = [a.sampler_noise for a in trials]
    prompts = [a.prompt for a in trials]  # a black-box victim gets nothing else
    images = (first.model or target.victim).generate(prompts, **more)
    samples = [Sample(prompt, image) for prompt, image in zip(prompts, images, strict=True)]
    return [bool(hit) for hit in target.criterion(samples)]
