"""The training loop of methods and attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bench.core.devices import free_bytes
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
    """Minimise a loss; return the loss before each step.

    Args:
        loss: Draws a batch and returns its loss, a scalar.
        optimizer: An optimiser of torch, or an object with ``zero_grad``, ``step`` and ``param_groups``.
        steps: Number of steps.
        ctx: Gets the progress.
        stage: Name of the progress.
        before_step: Called before each optimiser step, to change gradients.
        after_step: Called after each optimiser step.

    Raises:
        PluginError: The loss is not finite.
    """
    import torch

    _check_memory(optimizer, ctx.device)
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


def fused(parameters: Iterable[Tensor]) -> dict[str, Any]:
    """Return the arguments with which Adam makes no temporary copies; a CPU's are the library's own."""
    return {"fused": True} if all(p.is_cuda for p in parameters) else {}


def _check_memory(optimizer: Any, device: str) -> None:
    """Say before the first step that gradients and Adam's two moments do not fit on a device."""
    values = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    free, needed = free_bytes(device), 3 * 4 * values
    if free is not None and needed > free:
        raise PluginError(
            f"training {values:,} values takes {needed / 1e9:.1f} GB beside the weights, {device} has "
            f"{free / 1e9:.1f} GB left: train fewer (params=esd-x) or use a device with more memory"
        )


@contextmanager
def trainable(parameters: Iterable[Parameter]) -> Iterator[list[Parameter]]:
    """Turn gradients of parameters on; at the end turn them off and drop them.

    Raises:
        IncompatibleError: Parameters have half precision, where small steps are lost.
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
