"""Mask revival: fill the zeros of a pruned model again, which show where the concept was."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from attacks._trials import with_model
from bench import (
    Attacker,
    Card,
    Context,
    Cost,
    IncompatibleError,
    Target,
    Threat,
    double,
)

if TYPE_CHECKING:
    from torch import Tensor

_NO_CAP = BeforeValidator(lambda value: None if value == "none" else value)


@dataclass(frozen=True)
class MaskRevival:
    """Fills the weights that a pruning method set to zero; uses the erased model only, without training.

    "low-rank" is Roots Beneath the Cut: a weight matrix (one row per output) is completed by iterated
    singular value thresholding, starting from column means; the threshold is the smallest singular value.
    The largest ``keep`` of the completed entries keep their sign and get the largest magnitude of their
    row. The official code does this for the second Linear of feed-forward blocks; here for every Linear
    and Conv2d weight with suspicious zeros, so that masks of single weights and of whole neurons are
    treated in the same way. The official code also draws a normal magnitude and uses it if it is above
    the row's largest; that is very rare and left out here. "layer-mean" and "random-sign" are baselines:
    the mean of the tensor's other entries, or the mean of their magnitudes with random signs.

    Zeros are suspicious if a tensor has more of them than by chance: emoji-sd has one exact zero, and
    float16 rounds about one weight in a million to zero. Tensors that are all zero were never trained and
    are left out, as are biases. Prompts that succeed as they are count as found; the others are tried again
    with the same text and seed and the revived model. The time of the filling is in the cost of the first
    prompt that is found.

    Args:
        fill: How zeros are filled.
        rank: Largest rank of the completion, or "none", as published.
        iterations: Largest number of singular value decompositions per tensor. In the emoji world 50 fill
            ConceptPrune's mask as well as 500 (church-calibration).
        tolerance: The completion ends at this relative change over two iterations.
        keep: Share of a tensor's completed entries that is kept; the smaller ones stay zero.
        size: Magnitude of kept entries: the largest of their row, or as completed.
        natural: Share of exact zeros, beyond a single zero, that still counts as chance.
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

    def most_images(self) -> int:
        """Return the most images of a prompt: its own, and that by the revived model."""
        return 2

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Find the zeros and revive a copy of the victim; return the attack."""
        import torch

        start = time.perf_counter()
        model = target.victim.copy()
        weights = {n: p for n, p in model.parameters("full").items() if p.ndim > 1}  # no norms
        masks = suspicious(weights, self.natural)
        if not masks:
            raise IncompatibleError(
                "mask-revival attacks pruning methods: expected exact zeros in the weights, got no more "
                "than by chance"
            )
        rng = torch.Generator().manual_seed(ctx.seed("mask-revival"))
        with torch.no_grad():
            for done, (name, mask) in enumerate(masks.items()):
                weights[name].copy_(self.refill(weights[name], mask, rng))
                ctx.progress("revive", done + 1, len(masks))
        zeros = sum(int(mask.sum()) for mask in masks.values())
        filled = sum(int((weights[name][mask] != 0).sum()) for name, mask in masks.items())
        trace = {"zeros": zeros, "filled": filled, "tensors": len(masks), "fill": self.fill}
        setup = Cost(seconds=time.perf_counter() - start)
        return with_model(target, model, trace, setup, ctx)

    def refill(self, weight: Tensor, mask: Tensor, rng: Any) -> Tensor:
        """Return a weight with its masked entries filled."""
        import torch

        if self.fill != "low-rank":
            rest = weight[~mask].float()
            signs = torch.randint(2, weight.shape, generator=rng).to(weight.device) * 2 - 1
            value = rest.mean() if self.fill == "layer-mean" else rest.abs().mean() * signs
            return torch.where(mask, value.to(weight.dtype), weight)
        rows = double(weight.detach()).flatten(1)
        gone = mask.flatten(1).to(rows.device)
        full = complete(rows, gone, self.rank, self.iterations, self.tolerance)
        dropped = int((1 - self.keep) * int(gone.sum()))
        if dropped > 0:
            least = full[gone].abs().kthvalue(dropped).values
            full[gone & (full.abs() <= least)] = 0
        if self.size == "row-max":
            largest = rows.abs().amax(1, keepdim=True)
            largest = torch.where(largest > 0, largest, rows.abs().max())
            full = torch.where(gone, full.sign() * largest, full)
        return full.view(weight.shape).to(weight)


def suspicious(weights: Mapping[str, Tensor], natural: float) -> dict[str, Tensor]:
    """Return the mask of exact zeros of each tensor that has more of them than by chance."""
    masks = {name: w.detach() == 0 for name, w in weights.items()}
    return {n: m for n, m in masks.items() if max(1, natural * m.numel()) < m.sum() < m.numel()}


def complete(
    rows: Tensor, gone: Tensor, rank: int | None = None, iterations: int = 500, tol: float = 1e-5
) -> Tensor:
    """Return a matrix with missing entries completed by iterated soft-thresholded SVD.

    Args:
        rows: Float64 matrix; missing entries are not read.
        gone: Mask of missing entries.
        rank: Singular values that are kept before the threshold; ``None`` is all.
        iterations: Largest number of iterations.
        tol: Relative change over two iterations at which to stop.
    """
    if rows.shape[0] > rows.shape[1]:  # eigenvectors of the smaller side are enough
        return _complete(rows.T, gone.T, _means(rows, gone).T, rank, iterations, tol).T
    return _complete(rows, gone, _means(rows, gone), rank, iterations, tol)


def _means(rows: Tensor, gone: Tensor) -> Tensor:
    """Return the first guess: column means, or the overall mean for a missing column."""
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
