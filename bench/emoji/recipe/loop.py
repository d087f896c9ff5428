"""The training loop that every stage shares: schedule, clipping, EMA, checkpoints, progress.

Step ``i`` draws its batch from a generator seeded with ``i``, so a run that was killed and resumed
gives the same weights as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

Loss = Callable[[torch.Generator], Tensor]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up, constant, cosine to 2 %; ``decay`` is the cosine's share of the steps."""

    steps: int
    lr: float
    warmup: int = 100
    decay: float = 0.6

    def at(self, step: int) -> float:
        """Return the learning rate of a step."""
        start = (1 - self.decay) * self.steps
        fraction = min(1.0, max(0.0, (step - start) / max(1.0, self.steps - start)))
        cosine = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fraction))
        return self.lr * min(1.0, (step + 1) / self.warmup) * cosine


def faster() -> torch.autocast:
    """Return a context that computes in bfloat16 where that is safe; faster where there is AMX."""
    return torch.autocast("cpu", torch.bfloat16)


def fit(
    name: str,
    module: nn.Module,
    loss: Loss,
    schedule: Schedule,
    folder: Path,
    *,
    params: Sequence[nn.Parameter] | None = None,
    weight_decay: float = 0.01,
    ema: float = 0.0,
    preview: Callable[[], None] | None = None,
    every: int = 200,
) -> None:
    """Train ``module`` in place; resume from ``folder/name.pt`` if it is there.

    Args:
        name: Stage name, for the checkpoint and the log lines.
        module: What is trained and saved.
        loss: Returns the loss of one step; draws from the generator that it is given.
        schedule: Steps and learning rates.
        folder: Where checkpoints live.
        params: What the optimiser steps; all of ``module`` by default.
        weight_decay: AdamW's.
        ema: Decay of the averaged weights that are left in ``module`` at the end; 0 is none.
        preview: Called at each checkpoint with the averaged weights in place.
        every: Steps between checkpoints.
    """
    weights: list[torch.Tensor] = list(module.parameters() if params is None else params)
    optimizer = torch.optim.AdamW(
        weights, schedule.lr, betas=(0.9, 0.99), weight_decay=weight_decay, foreach=True
    )
    average = [p.detach().clone() for p in weights]
    path, start, seconds = folder / f"{name}.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average = [p.detach() for p in state["average"]]
        start, seconds = state["step"], state["seconds"]
    module.train()
    running, clock = 0.0, time.perf_counter()
    for step in range(start, schedule.steps):
        rng = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        value = loss(rng)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if ema:
            with torch.no_grad():
                torch._foreach_lerp_(average, weights, 1 - min(ema, (1 + step) / (20 + step)))
        running += value.item()
        now = time.perf_counter()
        seconds, clock = seconds + min(now - clock, 30.0), now  # a paused machine does not count
        if (step + 1) % 50 == 0 or step + 1 == schedule.steps:
            left = seconds / (step + 1) * (schedule.steps - step - 1)
            print(
                f"{name} {step + 1}/{schedule.steps} loss {running / 50:.4f} "
                f"lr {schedule.at(step):.1e} {seconds:.0f} s, {left / 60:.1f} min left",
                flush=True,
            )
            running = 0.0
        if (step + 1) % every == 0 or step + 1 == schedule.steps:
            state = {
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step + 1,
                "seconds": seconds,
            }
            torch.save(state, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
            if preview is not None:
                with averaged(weights, average if ema else weights):
                    module.eval()
                    preview()
                    module.train()
    if ema:
        with torch.no_grad():
            torch._foreach_copy_(weights, average)
    module.eval().requires_grad_(False)


class averaged:  # noqa: N801 - a context manager, named as one
    """Put other values into parameters for a while."""

    def __init__(self, params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.params, self.values = list(params), list(values)

    def __enter__(self) -> None:
        self.saved = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            torch._foreach_copy_(self.params, self.values)

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.params, self.saved)
