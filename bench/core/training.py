"""The training loop of methods and attacks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.core.devices import free_bytes
from bench.core.errors import IncompatibleError, PluginError
from bench.core.memory import Room
from bench.core.types import Context

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


@dataclass(frozen=True, slots=True)
class Batch:
    """What a step of :func:`fit` learns from: rows whose errors are averaged.

    Where memory is short, a step takes some rows at a time. Their gradients add up to the whole batch's.

    Args:
        rows: How many.
        error: Returns the mean error of some of them, a scalar, with gradients. It draws nothing.
        within: Opens what must hold until gradients are taken, such as hooks: passes may be computed again.
    """

    rows: int
    error: Callable[[slice], Tensor]
    within: Callable[[], AbstractContextManager[object]] = nullcontext

    def share(self, rows: slice) -> Tensor:
        """Return what some rows add to the error of all."""
        n = rows.stop - rows.start
        error = self.error(rows)
        return error if n == self.rows else error * (n / self.rows)

    def value(self) -> float:
        """Return the error of all rows, without gradients."""
        import torch

        with torch.no_grad():
            return sum(Room(self.rows).parts(self.rows, lambda rows: self.share(rows).item()))


def fit(
    loss: Callable[[], Batch | Tensor],
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
        loss: Draws a batch and returns it, or its loss, a scalar. With a :class:`Batch` a step that runs
            out of memory is taken again, with the same draws and half as many rows at a time.
        optimizer: An optimiser of torch, or an object with ``zero_grad``, ``step`` and ``param_groups``.
        steps: Number of steps.
        ctx: Gets the progress.
        stage: Name of the progress.
        before_step: Called before each optimiser step, to change gradients.
        after_step: Called after each optimiser step.

    Raises:
        PluginError: The loss is not finite.
    """
    _check_memory(optimizer, ctx.device)
    losses: list[float] = []
    room = Room(sys.maxsize)
    for step in range(steps):
        value = _take_gradients(loss(), optimizer, room)
        losses.append(value)
        if not math.isfinite(value):
            rate = optimizer.param_groups[0]["lr"]
            raise PluginError(f"the loss is {value} at step {step}: lower lr ({rate})")
        if before_step:
            before_step()
        optimizer.step()
        if after_step:
            after_step()
        ctx.progress(stage, step + 1, steps)
    return losses


def _take_gradients(drawn: Batch | Tensor, optimizer: Any, room: Room) -> float:
    """Add up the gradients of a batch's rows; return its error."""
    import torch

    batch = drawn if isinstance(drawn, Batch) else Batch(1, lambda _: drawn)
    while True:
        optimizer.zero_grad()  # of the step before, or of parts of this one
        at_once, value = min(room.at_once, batch.rows), 0.0
        try:
            for start in range(0, batch.rows, at_once):
                with batch.within():
                    part = batch.share(slice(start, min(batch.rows, start + at_once)))
                    part.backward()
                value += part.item()
        except torch.OutOfMemoryError:
            if not room.halve(at_once):
                raise
            continue
        return value


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
