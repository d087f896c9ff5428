"""P4D's search: its variable is embeddings, replaced by the nearest tokens of the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from attacks._slot import Slot
from attacks._token_search import Parameters, TokenSearch
from attacks.p4d import P4D
from bench import Cost, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


class NearestSearch(TokenSearch[Parameters]):
    """The search whose variable is embeddings ``(tokens, width)``, replaced by the nearest tokens."""

    step_cost = Cost(forward=2, backward=1, text_forward=1, text_backward=1)

    def embed(self, slots: Sequence[Slot]) -> tuple[Tensor, Tensor]:
        """Project on the vocabulary; the gradient is that of the projected embeddings."""
        variables = pad_sequence([s.variable for s in slots], batch_first=True)
        nearest = self.table[self._nearest(variables)].requires_grad_(True)
        return nearest, nearest

    def read(self, slot: Slot) -> list[int]:
        """Return the nearest token of each row."""
        found: list[int] = self._nearest(slot.variable).tolist()
        return found

    def own(self, prompts: Sequence[Prompt], pictures: Sequence[Image]) -> list[dict[str, Tensor]]:
        """Return the original model's encoding of each prompt."""
        return [{"cond": c} for c in self.target.original.encode([p.text for p in prompts])]

    def begin(self, slots: Sequence[Slot]) -> None:
        """Ask the original model for the goals of all steps of the round, which are known beforehand."""
        super().begin(slots)
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for slot in slots:
            restore = slot.snapshot()  # the steps will draw the same again
            for _ in range(self.attack.steps):
                x, t, _ = self.noised([slot])
                rows.append((x[0], t[0], slot.own["cond"]))
            restore()
        goals: list[Tensor] = []

        def ask(part: list[tuple[Tensor, Tensor, Tensor]]) -> None:
            x, t, cond = map(torch.stack, zip(*part, strict=True))
            with torch.no_grad():
                goals.extend(self.target.original.predict_noise(x, t, cond))

        self.in_parts(rows, ask)
        for slot, own in zip(slots, torch.stack(goals).split(self.attack.steps), strict=True):
            slot.own["goals"] = own

    def goal(self, slots: Sequence[Slot], noise: Tensor) -> Tensor:
        """Return what the original model predicts for the original prompts."""
        return torch.stack([s.own["goals"][len(s.losses) % self.attack.steps] for s in slots])

    def _nearest(self, embeddings: Tensor) -> Tensor:
        return (normalize(embeddings, dim=-1) @ self._directions.T).argmax(-1)

    @cached_property
    def _directions(self) -> Tensor:
        return normalize(self.table, dim=-1)


class P4DSearch(NearestSearch[P4D]):
    """The search that starts with the same tokens for every prompt."""

    def start(self, prompt: Prompt, tokens: int) -> Tensor:
        """Return the embeddings of random tokens, the same for every prompt."""
        rng = torch.Generator().manual_seed(self.attack.init_seed)
        torch.randn(tokens, self.table.shape[1], generator=rng)  # drawn and not used, as published
        ids = torch.randint(len(self.table), (tokens,), generator=rng)
        return self.table[ids.to(self.table.device)]
