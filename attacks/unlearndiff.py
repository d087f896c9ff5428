"""UnlearnDiffAtk: tokens that make an erased model denoise the concept, as probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks._token_search import Insertion, Slot, TokenSearch
from bench import Adversarial, Card, Concept, Context, Prompt, Target, Threat, World, fill


@dataclass(frozen=True)
class UnlearnDiff:
    """UnlearnDiffAtk (Zhang et al., To Generate or Not?), batched over prompts.

    The variable is a probability over the vocabulary for each free token: one token a row is drawn a
    step, its gradient is passed straight through and clamped, and rows are put back on the simplex; the
    likeliest tokens are read. :mod:`attacks._token_search` has the loop.

    Deviations from the official code: the projection is exact by default ("bisect" is theirs, whose
    rows do not sum to one); the target image comes from the model's own sampler and the prompt's own
    guidance; a prompt with no room for the tokens is not attacked, and says so in its trace.

    Args:
        tokens: Free tokens; 5 for nudity, 3 otherwise.
        insertion: Where they stand: "prefix" (official), "suffix", "mid", "insert", "per-k-words".
        timesteps: "pruning" attacks at 10 timesteps (10, 110, ... 910), "official" at 50.
        phase: Added to every timestep; 80 gives the pruning paper's other reading, 90, 190, ... 990.
        iterations: Adam steps at each timestep.
        lr: Adam's learning rate; 0.01 is published. The emoji world's vocabulary is 40 times
            smaller, so its probabilities start 40 times larger.
        weight_decay: L2 term that is added to the gradient.
        loss: Distance between true and predicted noise.
        projection: How rows are put back on the simplex.
    """

    card: ClassVar = Card(
        "To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate "
        "Unsafe Images ... For Now",
        "https://arxiv.org/abs/2310.11868",
        "https://github.com/OPTML-Group/Diffusion-MU-Attack",
    )
    threat: ClassVar = Threat("white", "prompt")

    tokens: int | None = None
    insertion: Insertion = "prefix"
    timesteps: Literal["pruning", "official"] = "pruning"
    phase: int = 0
    iterations: int = 40
    lr: float = 0.01
    weight_decay: float = 0.1
    loss: Literal["l2", "l1"] = "l2"
    projection: Literal["exact", "bisect"] = "exact"

    def resolve(self, concept: Concept, world: World) -> UnlearnDiff:
        """Return the attack with the number of tokens filled in."""
        return fill(self, tokens=5 if concept.kind == "nsfw" else 3)

    def prepare(
        self, target: Target, ctx: Context
    ) -> Callable[[Sequence[Prompt]], Iterator[Adversarial]]:
        """Return the search."""
        return SimplexSearch(self.resolve(target.concept, target.victim.world), target, ctx).run


class SimplexSearch(TokenSearch):
    """Free tokens as rows of probabilities, ``(tokens, vocabulary)``."""

    def start(self, prompt: Prompt) -> Tensor:
        """Return uniform rows."""
        vocabulary = len(self.table)
        return torch.full((self.attack.tokens, vocabulary), 1 / vocabulary)

    def embed(self, slots: Sequence[Slot]) -> tuple[Tensor, Tensor]:
        """Draw a token for every row; the gradient is the one-hot row's."""
        drawn = [torch.multinomial(s.variable, 1, generator=s.rng)[:, 0] for s in slots]
        one_hot = torch.nn.functional.one_hot(torch.stack(drawn), len(self.table)).float()
        one_hot = one_hot.to(self.model.device).requires_grad_(True)
        return one_hot, one_hot @ self.table

    def move(self, slot: Slot, grad: Tensor) -> None:
        """Step on the clamped gradient, and back on the simplex."""
        moved = slot.adam.update(slot.variable, grad.clamp(-1, 1))
        slot.variable = project(moved) if self.attack.projection == "exact" else bisect(moved)

    def read(self, slot: Slot) -> list[int]:
        """Return the likeliest token of each row."""
        return slot.variable.argmax(-1).tolist()


def project(rows: Tensor) -> Tensor:
    """Return the Euclidean projection of each row on the probability simplex, by sorting."""
    ordered = rows.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    count = torch.arange(1, rows.shape[-1] + 1, dtype=rows.dtype)
    support = (ordered - excess / count > 0).sum(-1, keepdim=True)
    shift = excess.gather(-1, support - 1) / support
    return (rows - shift).clamp(min=0)


def bisect(rows: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Return the official code's projection: a bisection too coarse for large vocabularies."""
    return torch.stack([_bisect(row, tolerance) for row in rows])


def _bisect(row: Tensor, tolerance: float) -> Tensor:
    def excess(mu: float) -> float:
        return float((row - mu).clamp(0, 1).sum()) - 1

    clipped = row.clamp(0, 1)
    if abs(float(clipped.sum()) - 1) <= tolerance:
        return clipped
    low, high = float(row.min()) - 1, float(row.max())
    middle = (low + high) / 2
    while abs(high - low) > tolerance:
        middle = (low + high) / 2
        value = excess(middle)
        if value == 0:
            break
        if (excess(low) + 1e-8) * value < 0:
            high = middle
        else:
            low = middle
    return (row - middle).clamp(0, 1)
