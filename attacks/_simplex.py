"""UnlearnDiffAtk's search: its variable is rows of probabilities over the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attacks._slot import Slot
from attacks._token_search import TokenSearch
from attacks.unlearndiff import UnlearnDiff
from bench import Prompt, double

_HALVINGS = 40  # enough for values up to ten million; probabilities need 17


class SimplexSearch(TokenSearch[UnlearnDiff]):
    """The search whose variable is rows of probabilities, ``(tokens, vocabulary)``."""

    def start(self, prompt: Prompt, tokens: int) -> Tensor:
        """Return uniform rows."""
        vocabulary = len(self.table)
        return torch.full((tokens, vocabulary), 1 / vocabulary)

    def embed(self, slots: Sequence[Slot]) -> tuple[Tensor, Tensor]:
        """Draw a token for each row; the gradient is that of the one-hot rows."""
        rows = torch.stack([s.variable for s in slots])
        draw = inverted if self.attack.draw == "device" else multinomial
        ids = draw(rows, [s.rng for s in slots])
        one_hot = torch.zeros_like(rows).scatter_(-1, ids[..., None], 1.0).requires_grad_(True)
        return one_hot, one_hot @ self.table

    def move(self, slots: Sequence[Slot], grad: Tensor) -> None:
        """Take a step with the clamped gradient; project on the simplex."""
        super().move(slots, grad.clamp(-1, 1))
        onto = project if self.attack.projection == "exact" else bisect
        rows = onto(torch.cat([s.variable for s in slots]))
        for slot, variable in zip(slots, rows.split([len(s.variable) for s in slots]), strict=True):
            slot.variable = variable

    def read(self, slot: Slot) -> list[int]:
        """Return the likeliest token of each row."""
        return slot.variable.argmax(-1).tolist()


def multinomial(rows: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
    """Draw one of a row's tokens by its probabilities, as the official code does on a CPU.

    Args:
        rows: Probabilities, ``(prompts, tokens, vocabulary)``; a row's sum may differ from one.
        rngs: A random stream for each prompt, on the CPU.

    Returns:
        Ids, ``(prompts, tokens)``, where ``rows`` is.
    """
    drawn = [
        torch.multinomial(p, 1, generator=rng)[:, 0]
        for rng, p in zip(rngs, rows.cpu(), strict=True)
    ]
    return torch.stack(drawn).to(rows.device)


def inverted(rows: Tensor, rngs: Sequence[torch.Generator]) -> Tensor:
    """Draw like :func:`multinomial`, but where ``rows`` is: one uniform number for each row leaves the CPU.

    The token is the first whose cumulative sum reaches ``(1 - u)`` of the row's sum, ``u`` in [0, 1). So a
    token of probability zero is never drawn.
    """
    kind = torch.float32 if rows.device.type == "mps" else torch.float64  # mps has no other
    sums = rows.cumsum(-1, dtype=kind)
    u = torch.stack([torch.rand(rows.shape[1], 1, generator=rng, dtype=kind) for rng in rngs])
    reached = (1 - u).to(rows.device, non_blocking=True) * sums[..., -1:]
    return torch.searchsorted(sums, reached)[..., 0]


def project(rows: Tensor) -> Tensor:
    """Return the Euclidean projection of each row on the probability simplex, by sorting."""
    ordered = _descending(rows)
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, rows.shape[-1] + 1, dtype=rows.dtype, device=rows.device)
    support = (ordered - excess / count > 0).sum(-1, keepdim=True)
    shift = excess.gather(-1, support - 1) / support
    return (rows - shift).clamp(min=0)


def _descending(rows: Tensor) -> Tensor:
    if rows.device.type == "cpu":  # numpy's sort takes a tenth of the time
        return torch.from_numpy(np.sort(rows.numpy())).flip(-1)
    return rows.sort(-1, descending=True).values


def bisect(rows: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Return the official code's projection of each row, a bisection that is too coarse for many tokens.

    All rows have the same fixed number of halvings, so that a GPU never waits for a result.
    """

    def excess(shift: Tensor) -> Tensor:
        return double((rows - shift.to(rows)).clamp(0, 1).sum(-1, keepdim=True)) - 1

    low = double(rows.amin(-1, keepdim=True)) - 1
    high = double(rows.amax(-1, keepdim=True))
    middle = (low + high) / 2
    going = torch.ones_like(middle, dtype=torch.bool)
    for _ in range(_HALVINGS):
        going &= (high - low).abs() > tolerance
        middle = torch.where(going, (low + high) / 2, middle)
        value = excess(middle)
        going &= value != 0
        below = (excess(low) + 1e-8) * value < 0
        high = torch.where(going & below, middle, high)
        low = torch.where(going & ~below, middle, low)
    clipped = rows.clamp(0, 1)
    there = (clipped.sum(-1, keepdim=True) - 1).abs() <= tolerance
    return torch.where(there, clipped, (rows - middle.to(rows)).clamp(0, 1))
