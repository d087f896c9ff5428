"""P4D as the pruning paper uses it: tokens that make an erased model predict the original's noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from attacks._token_search import Rules, Slot, TokenAttack, TokenSearch
from bench import Attacker, Card, Context, Cost, Prompt, Target, Threat


@dataclass(frozen=True)
class P4D(TokenAttack):
    """Prompting4Debugging, as re-implemented in Diffusion-MU-Attack and used by the pruning paper.

    The variable is an embedding for each free token (PEZ, arXiv 2302.03668): the error is taken at the
    nearest tokens of the vocabulary, its gradient moves the embedding. The victim is asked for the noise
    that the original model predicts for the original prompt; each model uses its own text encoder, so
    edited encoders are attacked as well (the re-implementation uses one for both). First values are the
    same random tokens for every prompt, drawn as the re-implementation does on a CPU.
    :mod:`attacks._token_search` has the loop; ``p4d-official`` is the authors' own.

    Args:
        init_seed: Seed of the first tokens.
    """

    card: ClassVar = Card(
        "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts",
        "https://arxiv.org/abs/2309.06135",
        "https://github.com/OPTML-Group/Diffusion-MU-Attack",
    )
    threat: ClassVar = Threat("white", "prompt")

    init_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def free(self, ids: Sequence[int]) -> int:
        """Return how many free tokens a prompt gets; for "per-k-words" it depends on its length."""
        return ceil(len(ids) / self.tokens) if self.insertion == "per-k-words" else self.tokens

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the search."""
        return P4DSearch(self, target, ctx).run


class NearestSearch(TokenSearch[Rules]):
    """Free tokens as embeddings, ``(tokens, width)``, seen through their nearest vocabulary tokens."""

    step_cost = Cost(forward=2, backward=1, text_forward=1, text_backward=1)

    def embed(self, slots: Sequence[Slot]) -> tuple[Tensor, Tensor]:
        """Project on the vocabulary; the gradient is the projected embedding's."""
        variables = pad_sequence([s.variable for s in slots], batch_first=True)
        nearest = self.table[self._nearest(variables)].requires_grad_(True)
        return nearest, nearest

    def read(self, slot: Slot) -> list[int]:
        """Return the nearest token of each row."""
        found: list[int] = self._nearest(slot.variable).tolist()
        return found

    def wanted(self, prompts: Sequence[Prompt]) -> Sequence[Tensor]:
        """Return the original's own encoding of the prompts."""
        return list(self.target.original.encode([p.text for p in prompts]))

    def begin(self, slots: Sequence[Slot]) -> None:
        """Ask the original for the noise of all the round's steps: what it sees does not depend on them."""
        super().begin(slots)
        rows: list[tuple[Slot, int, Tensor]] = []
        for slot in slots:
            slot.goals, state = [], slot.rng.get_state()
            for _ in range(self.attack.steps):
                (time,) = self.draw_times([slot])
                rows.append((slot, time, torch.randn(slot.latent.shape, generator=slot.rng)))
            slot.rng.set_state(state)

        def ask(part: list[tuple[Slot, int, Tensor]]) -> None:
            asked, times, noise = zip(*part, strict=True)
            device = self.model.device
            t, drawn = torch.tensor(times, device=device), torch.stack(noise).to(device)
            x = self.model.add_noise(torch.stack([s.latent for s in asked]), drawn, t)
            cond = torch.stack([s.wanted for s in asked])
            with torch.no_grad():
                found = self.target.original.predict_noise(x, t, cond)
            for slot, goal in zip(asked, found, strict=True):
                slot.goals.append(goal)

        self.in_parts(rows, ask)

    def goal(self, slots: Sequence[Slot], noise: Tensor) -> Tensor:
        """Return what the original predicts for the original prompts."""
        return torch.stack([s.goals[len(s.losses) % self.attack.steps] for s in slots])

    def _nearest(self, embeddings: Tensor) -> Tensor:
        return (normalize(embeddings, dim=-1) @ self._directions.T).argmax(-1)

    @cached_property
    def _directions(self) -> Tensor:
        return normalize(self.table, dim=-1)


class P4DSearch(NearestSearch[P4D]):
    """The search that begins with the same tokens for every prompt."""

    def start(self, prompt: Prompt, tokens: int) -> Tensor:
        """Return the embeddings of random tokens, the same for every prompt."""
        rng = torch.Generator().manual_seed(self.attack.init_seed)
        torch.randn(tokens, self.table.shape[1], generator=rng)  # a draw that is thrown away
        ids = torch.randint(len(self.table), (tokens,), generator=rng)
        return self.table[ids.to(self.table.device)]
