"""Mask revival: zeros that pruning left behind say where the concept was; fill them again."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from attacks._trials import charge_first, first_success
from bench import (
    Adversarial,
    Attacker,
    Card,
    Context,
    Cost,
    IncompatibleError,
    Prompt,
    Target,
    Threat,
)

if TYPE_CHECKING:
    from torch import Tensor

_NO_CAP = BeforeValidator(lambda value: None if value == "none" else value)


@dataclass(frozen=True)
class MaskRevival:
    """Refills what a pruning method zeroed, from the erased model alone: no data, no training, no base.

    "low-rank" is Roots Beneath the Cut: a weight matrix (a row per output) is completed by iterated
    singular value thresholding from column means, where the threshold is the smallest singular value;
    of the completed entries the largest ``keep`` keep their sign, and get the largest magnitude of
    their row. The official code does so for the second Linear of feed-forward blocks; here every Linear
    and Conv2d weight that has suspicious zeros is refilled, so that masks of single weights and of whole
    neurons are treated alike. It also draws a normal magnitude, and takes that where it is above the
    row's largest; that hardly ever happens and is left out.
    "layer-mean" and "random-sign" are floors: the mean of the tensor's other entries, or the mean of
    their magnitudes with random signs.

    Zeros are suspicious where there are more than chance leaves: emoji-sd has a single exact zero, and
    float16 rounds about one weight in a million to zero. Tensors that are all zero were never trained,
    and biases are left alone. Prompts that succeed as they are stay so; the others are drawn again,
    text and seed unchanged, by the one revived model. The time of the refill is in the cost of the first
    prompt that is done.

    Args:
        fill: How zeros are refilled.
        rank: Cap on the rank of the completion, or "none", as published.
        iterations: Singular value decompositions of each tensor at most. On the emoji world 50 fill
            ConceptPrune's mask as well as 500 (church-calibration).
        tolerance: Relative change over two of them at which they end.
        keep: Share of a tensor's completed entries that is kept; the smaller ones stay zero.
        size: Magnitude of kept entries: their row's largest, or as completed.
        natural: Share of exact zeros, beyond a single one, that is still taken for chance.
    """

    card: ClassVar = Card(
        "Roots Beneath the Cut: Uncovering the Risk of Concept Revival in Pruning-Based Unlearning "
        "for Diffusion Models",
        "https://arxiv.org/abs/2603.06640",
        "https://github.com/Brankozz/Roots-Beneath-the-Cut",
    )
    threat: ClassVar = Threat("white", "weights")

    fill: Literal["low-rank", "layer-mean", "random-sign"] = "low-rank"
    rank: Annotated[int | None, Field(ge=1), _NO_CAP] = None
    iterations: Annotated[int, Field(ge=1)] = 500
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    keep: Annotated[float, Field(gt=0, le=1)] = 0.6
    size: Literal["row-max", "completed"] = "row-max"
    natural: Annotated[float, Field(ge=0, lt=1)] = 1e-5

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Find the zeros, revive a copy of the victim; return the attack."""
        import torch

        start = time.perf_counter()
        model = target.victim.copy()
        weights = {n: p for n, p in model.parameters("full").items() if p.ndim > 1}  # no norms
        masks = suspicious(weights, self.natural)
        if not masks:
            raise IncompatibleError(
                "nothing to revive: expected exact zeros in the weights, got none beyond chance; "
                "mask-revival is an attack on pruning methods"
            )
        rng = torch.Generator().manual_seed(ctx.seed("mask-revival"))
        with torch.no_grad():
            for done, (name, mask) in enumerate(masks.items()):
                weights[name].copy_(self.refill(weights[name], mask, rng))
                ctx.progress("revive", done + 1, len(masks))
        zeros = sum(int(mask.sum()) for mask in masks.values())
        filled = sum(int((weights[name][mask] != 0).sum()) for name, mask in masks.items())
        trace = {"zeros": zeros, "filled": filled, "tensors": len(masks), "fill": self.fill}

        def variant(prompt: Prompt, _: int) -> Adversarial:
            return Adversarial(prompt, model=model, trace=trace)

        setup = Cost(seconds=time.perf_counter() - start)
        return lambda prompts: charge_first(
            first_success(target, prompts, variant, 1, ctx, batch=ctx.batch_size), setup
        )

    def refill(self, weight: Tensor, mask: Tensor, rng: Any) -> Tensor:
        """Return a weight with the entries under the mask filled."""
        import torch

        if self.fill != "low-rank":
            rest = weight[~mask].float()
            signs = torch.randint(2, weight.shape, generator=rng).to(weight.device) * 2 - 1
            value = rest.mean() if self.fill == "layer-mean" else rest.abs().mean() * signs
            return torch.where(mask, value.to(weight.dtype), weight)
        rows, gone = weight.detach().double().flatten(1), mask.flatten(1)
        full = complete(rows, gone, self.rank, self.iterations, self.tolerance)
        dropped = int((1 - self.keep) * int(gone.sum()))
        if dropped > 0:
            least = full[gone].abs().kthvalue(dropped).values
            full[gone & (full.abs() <= least)] = 0
        if self.size == "row-max":
            largest = rows.abs().amax(1, keepdim=True)
            largest = torch.where(largest > 0, largest, rows.abs().max())
            full = torch.where(gone, full.sign() * largest, full)
        return full.view(weight.shape).to(weight.dtype)


def suspicious(weights: Mapping[str, Tensor], natural: float) -> dict[str, Tensor]:
    """Return where the exact zeros are, by name, in tensors that have more of them than is natural."""
    masks = {name: w.detach() == 0 for name, w in weights.items()}
    return {n: m for n, m in masks.items() if max(1, natural * m.numel()) < m.sum() < m.numel()}


def complete(
    rows: Tensor, gone: Tensor, rank: int | None = None, iterations: int = 500, tol: float = 1e-5
) -> Tensor:
    """Return a matrix with missing entries completed by iterated soft-thresholded SVD.

    Args:
        rows: Float64 matrix, read where nothing is missing.
        gone: Which entries are missing.
        rank: Singular values kept before the threshold; ``None`` is all.
        iterations: At most.
        tol: Relative change over two iterations at which to stop.
    """
    if rows.shape[0] > rows.shape[1]:  # eigenvectors of the smaller side are enough
        return _complete(rows.T, gone.T, _means(rows, gone).T, rank, iterations, tol).T
    return _complete(rows, gone, _means(rows, gone), rank, iterations, tol)


def _means(rows: Tensor, gone: Tensor) -> Tensor:
    """Return the first guess: column means, or the mean of all where a column is missing."""
    import torch

    there = (~gone).sum(0)
    total = torch.where(gone, 0, rows).sum(0)
    overall = total.sum() / there.sum()
    means = torch.where(there > 0, total / there.clamp(min=1), overall)
    return torch.where(gone, means, rows)


def _complete(
    known: Tensor, gone: Tensor, x: Tensor, rank: int | None, iterations: int, tol: float
) -> Tensor:
    import torch

    before: Tensor | None = None
    for _ in range(iterations):
        # x = U S V': soft-thresholding S is U max(S - tau, 0) / S U' x, and needs no V.
        values, u = torch.linalg.eigh(x @ x.T)
        s = values.clamp(min=0).sqrt().flip(0)[:rank]
        u = u.flip(1)[:, :rank]
        shrunk = (s - s[-1]).clamp(min=0) / s.clamp(min=torch.finfo(s.dtype).tiny)
        new = torch.where(gone, (u * shrunk) @ (u.T @ x), known)
        if before is not None and (new - before).norm() < tol * before.norm():
            return new
        before, x = x, new
    return x
