"""The loop of attacks that have a list of things to try for each prompt: plain first, then the list."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench import Adversarial, Cost, Prompt, Sample, Target

if TYPE_CHECKING:
    from PIL.Image import Image

Variant = Callable[[Prompt, int], Adversarial]
"""Returns what to try for a prompt in a round; one round's trials are all of one kind."""


def first_success(
    target: Target,
    prompts: Sequence[Prompt],
    variant: Variant,
    rounds: int,
    *,
    batch: int | None = None,
    stop: bool = True,
) -> Iterator[Adversarial]:
    """Try each prompt as it is, then its variants 1, 2, ... ``rounds``; yield the first that succeeds.

    If none does, the last is yielded. Each image's share of the time is in the cost, and what the trial
    itself costs beside its image.

    Args:
        target: Victim and criterion.
        prompts: All are tried in a round before the next begins.
        variant: What to try; its trace is kept.
        rounds: How many variants there are.
        batch: Images at once, after which finished prompts are yielded; all by default.
        stop: Leave a prompt's other variants out after a success; ``False`` tries and counts them all.
    """
    left, spent, hits = list(prompts), dict[str, Cost](), dict[str, list[int]]()
    best: dict[str, tuple[int, Adversarial]] = {}
    for done in range(rounds + 1):
        going = list[Prompt]()
        size = batch or max(len(left), 1)
        for part in (left[i : i + size] for i in range(0, len(left), size)):
            start = time.perf_counter()
            trials = [variant(p, done) if done else Adversarial(p) for p in part]
            samples = [
                Sample(a.prompt, im) for a, im in zip(trials, _draw(target, trials), strict=True)
            ]
            found = target.criterion(samples)
            share = Cost(images=1, seconds=(time.perf_counter() - start) / len(part))
            for prompt, trial, hit in zip(part, trials, found, strict=True):
                name = prompt.id
                spent[name] = spent.get(name, Cost()) + trial.cost + share
                if hit:
                    hits.setdefault(name, []).append(done)
                    best.setdefault(name, (done, trial))
                if done < rounds and not (hit and (stop or done == 0)):
                    going.append(prompt)
                    continue
                last, chosen = best.get(name, (done, trial))
                trace: dict[str, Any] = {"success": name in best, "round": last}
                trace |= {} if stop else {"rounds_with_success": hits.get(name, [])}
                yield replace(chosen, cost=spent[name], trace=trace | dict(chosen.trace))
        left = going


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
    if first.noise is not None:
        more["noise"] = [a.noise for a in trials]
    return (first.model or target.victim).generate([a.prompt for a in trials], **more)
