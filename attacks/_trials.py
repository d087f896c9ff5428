"""The loop of attacks that have a list of things to try for each prompt: plain first, then the list."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from attacks._resume import Resume, State
from bench import Adversarial, Context, Cost, Model, Prompt, Sample, Target

if TYPE_CHECKING:
    from PIL.Image import Image

Variant = Callable[[Prompt, int], Adversarial]
"""Returns what to try for a prompt in a round; one round's trials are all of one kind."""


def first_success(
    target: Target,
    prompts: Sequence[Prompt],
    variant: Variant,
    rounds: int,
    ctx: Context,
    *,
    batch: int | None = None,
    stop: bool = True,
) -> Iterator[Adversarial]:
    """Try each prompt as it is, then its variants 1, 2, ... ``rounds``; yield the first that succeeds.

    If none does, the last is yielded. Each image's share of the time is in the cost, and what the trial
    itself costs beside its image. What was tried before a kill is not tried again.

    Args:
        target: Victim and criterion.
        prompts: All are tried in a round before the next begins.
        variant: What to try; its trace is kept.
        rounds: How many variants there are.
        ctx: Where what was tried is kept.
        batch: Images at once, after which finished prompts are yielded; all by default.
        stop: Leave a prompt's other variants out after a success; ``False`` tries and counts them all.
    """
    resume = Resume(ctx, [p.id for p in prompts])
    states = resume.load()
    tried = {p.id: _Tried.of(states[p.id]) if p.id in states else _Tried() for p in prompts}
    for done in range(rounds + 1):
        now = [p for p in prompts if p.id in tried and tried[p.id].rounds == done]
        size = batch or max(len(now), 1)
        for part in (now[i : i + size] for i in range(0, len(now), size)):
            start = time.perf_counter()
            trials = [variant(p, done) if done else Adversarial(p) for p in part]
            images = _draw(target, trials)
            samples = [Sample(a.prompt, image) for a, image in zip(trials, images, strict=True)]
            found = target.criterion(samples)
            share = Cost(images=1, seconds=(time.perf_counter() - start) / len(part))
            ready = []
            for prompt, trial, hit in zip(part, trials, found, strict=True):
                own = tried[prompt.id]
                own.rounds, own.cost = done + 1, own.cost + trial.cost + share
                own.hits += [done] * bool(hit)
                if done < rounds and not (hit and (stop or done == 0)):
                    continue
                last = own.hits[0] if own.hits else done
                best = trial if last == done else variant(prompt, last)
                trace: dict[str, Any] = {"success": bool(own.hits), "round": last}
                trace |= {} if stop else {"rounds_with_success": own.hits}
                ready.append(replace(best, cost=own.cost, trace=trace | dict(best.trace)))
                del tried[prompt.id]
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
    """Return a copy of a model to train: in float32 where the model is in half precision."""
    import torch

    return model.cast("fp32") if model.dtype in {torch.bfloat16, torch.float16} else model.copy()


def charge_first(found: Iterator[Adversarial], setup: Cost) -> Iterator[Adversarial]:
    """Add what all prompts share to the cost of the first that is done, so that sums are what was spent."""
    for i, adversarial in enumerate(found):
        yield adversarial if i else replace(adversarial, cost=adversarial.cost + setup)


def _draw(target: Target, trials: Sequence[Adversarial]) -> Sequence[Image]:
    """Make the images of one round's trials; a black-box victim is asked with texts only."""
    import torch

    first, more = trials[0], dict[str, Any]()
    if first.embedding is not None:
        more["embeddings"] = torch.stack([a.embedding for a in trials if a.embedding is not None])
    if first.sampler_noise is not None:
        more["sampler_noise"] = [a.sampler_noise for a in trials]
    return (first.model or target.victim).generate([a.prompt for a in trials], **more)
