"""P4D as the pruning paper uses it: tokens that make an erased model predict the original's noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks._token_search import Insertion, Slot, TokenSearch
from bench import Adversarial, Card, Concept, Context, Cost, Prompt, Target, Threat, World, fill


@dataclass(frozen=True)
class P4D:
    """Prompting4Debugging, as re-implemented in Diffusion-MU-Attack and used by the pruning paper.

    The variable is an embedding for each free token (PEZ, arXiv 2302.03668): the error is taken at the
    nearest tokens of the vocabulary, its gradient moves the embedding. The victim is asked for the noise
    that the original model predicts for the original prompt; each model uses its own text encoder, so
    edited encoders are attacked as well (the re-implementation uses one for both). First values are the
    same random tokens for every prompt. :mod:`attacks._token_search` has the loop. The official P4D of
    joycenerd/P4D differs in tokens, optimiser, timesteps and selection.

    Args:
        tokens: Free tokens; 5 for nudity, 3 otherwise.
        insertion: Where they stand; "prefix" is the pruning paper's.
        timesteps: "pruning" attacks at 10 timesteps (10, 110, ... 910), "official" at 50.
        phase: Added to every timestep.
        iterations: Adam steps at each timestep.
        lr: Adam's learning rate.
        weight_decay: L2 term that is added to the gradient.
        loss: Distance between the two models' noise.
    """

    card: ClassVar = Card(
        "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts",
        "https://arxiv.org/abs/2309.06135",
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

    def resolve(self, concept: Concept, world: World) -> P4D:
        """Return the attack with the number of tokens filled in."""
        return fill(self, tokens=5 if concept.kind == "nsfw" else 3)

    def prepare(
        self, target: Target, ctx: Context
    ) -> Callable[[Sequence[Prompt]], Iterator[Adversarial]]:
        """Return the search."""
        return NearestSearch(self.resolve(target.concept, target.victim.world), target, ctx).run


class NearestSearch(TokenSearch):
    """Free tokens as embeddings, ``(tokens, width)``, seen through their nearest vocabulary tokens."""

    step_cost = Cost(forward=2, backward=1, text_forward=1, text_backward=1)

    def start(self, prompt: Prompt) -> Tensor:
        """Return the embeddings of random tokens, the same for every prompt."""
        rng = torch.Generator().manual_seed(self.ctx.seed("p4d"))
        ids = torch.randint(len(self.table), (self.attack.tokens,), generator=rng)
        return self.table[ids.to(self.table.device)].cpu().clone()

    def embed(self, slots: Sequence[Slot]) -> tuple[Tensor, Tensor]:
        """Project on the vocabulary; the gradient is the projected embedding's."""
        variables = torch.stack([s.variable for s in slots]).to(self.table.device)
        nearest = self.table[self._nearest(variables)].requires_grad_(True)
        return nearest, nearest

    def move(self, slot: Slot, grad: Tensor) -> None:
        """Step on the embedding with the gradient taken at its projection."""
        slot.variable = slot.adam.update(slot.variable, grad)

    def read(self, slot: Slot) -> list[int]:
        """Return the nearest token of each row."""
        found: list[int] = self._nearest(slot.variable.to(self.table.device)).tolist()
        return found

    def goal(self, slots: Sequence[Slot], x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return what the original predicts for the original prompts."""
        original = self.target.original
        with torch.no_grad():
            return original.predict_noise(x, t, original.encode([s.prompt.text for s in slots]))

    def _nearest(self, embeddings: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize
        return (unit(embeddings, dim=-1) @ unit(self.table, dim=-1).T).argmax(-1)
