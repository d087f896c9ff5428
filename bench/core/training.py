"""The loop that every method and attack trains with: finite? backward, step, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench.core.types import Context
from bench.errors import IncompatibleError, PluginError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


def fit(
    loss: Callable[[], Tensor],
    optimizer: Any,
    steps: int,
    ctx: Context,
    *,
    stage: str = "erase",
    before_step: Callable[[], object] | None = None,
    after_step: Callable[[], object] | None = None,
) -> list[float]:
    """Take steps along the gradient of a loss; return the loss of each step, before it.

    Args:
        loss: Draws a batch and returns its loss, a scalar.
        optimizer: An optimiser of torch, or what has its ``zero_grad``, ``step`` and ``param_groups``.
        steps: How many.
        ctx: Told of the progress.
        stage: What the progress is of.
        before_step: Called when gradients are there, to change them.
        after_step: Called when the parameters have changed.

    Raises:
        PluginError: The loss is not finite.
    """
    import torch

    losses = []
    for step in range(steps):
        value = loss()
        losses.append(value.item())
        if not torch.isfinite(value):
            rate = optimizer.param_groups[0]["lr"]
            raise PluginError(f"the loss is {losses[-1]} at step {step}: lower lr ({rate})")
        optimizer.zero_grad()
        value.backward()
        if before_step:
            before_step()
        optimizer.step()
        if after_step:
            after_step()
        ctx.progress(stage, step + 1, steps)
    return losses


@contextmanager
def trainable(parameters: Iterable[Parameter]) -> Iterator[list[Parameter]]:
    """Turn on the gradients of parameters; afterwards they are off again and forgotten.

    Raises:
        IncompatibleError: They are of half precision, in which small steps are lost.
    """
    chosen = list(parameters)
    if coarse := {p.dtype for p in chosen if p.dtype.itemsize < 4}:
        raise IncompatibleError(
            f"training needs float32 weights, got {coarse.pop()}: cast the model"
        )
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        yield chosen
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False).grad = None
