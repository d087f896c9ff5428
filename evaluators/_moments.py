"""Mean and covariance of features that come in shards, and the distance of two Gaussians."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sums of feature rows, in float64: the order and size of shards hardly change them.

    Args:
        n: Number of rows.
        total: Sum of the rows, ``(width,)``.
        outer: Sum of the rows' outer products, ``(width, width)``.
    """

    n: int
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, shards: Iterable[Tensor]) -> Moments:
        """Add up shards ``(some, width)``."""
        n, total, outer = 0, torch.zeros(()), torch.zeros(())
        for shard in shards:
            x = shard.double()
            n, total, outer = n + len(x), total + x.sum(0), outer + x.T @ x
        return cls(n, total, outer)

    @property
    def mean(self) -> Tensor:
        """Return the mean, ``(width,)``."""
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        """Return the unbiased covariance, ``(width, width)``, of at least two rows."""
        return (self.outer - self.n * torch.outer(self.mean, self.mean)) / (self.n - 1)

    def frechet(self, mean: Tensor, covariance: Tensor) -> float:
        """Return clean-fid's Fréchet distance to a Gaussian."""
        from cleanfid.fid import frechet_distance

        ours = (self.mean.numpy(), self.covariance.numpy())
        return float(frechet_distance(*ours, mean.double().numpy(), covariance.double().numpy()))
