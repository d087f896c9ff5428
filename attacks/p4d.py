"""P4D of the pruning paper: tokens with which an erased model predicts the original's noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar

from pydantic import Field

from attacks._token_attack import TokenAttack
from bench import Attacker, Card, Context, Target, Threat


@dataclass(frozen=True)
class P4D(TokenAttack):
    """Prompting4Debugging, as re-implemented in Diffusion-MU-Attack and used by the pruning paper.

    For each free token, the variable is an embedding (PEZ, arXiv 2302.03668): the error is computed with
    the nearest tokens of the vocabulary, and its gradient moves the embedding. The victim should predict
    the noise that the original model predicts for the original prompt. Each model uses its own text
    encoder, so edited encoders are attacked, too (the re-implementation uses one for both). All prompts
    start with the same random tokens, drawn as the re-implementation does on a CPU.
    :mod:`attacks._token_search` has the search; ``p4d-official`` is the authors' own code.

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
        """Return the number of free tokens; for "per-k-words" it depends on the prompt's length."""
        return ceil(len(ids) / self.tokens) if self.insertion == "per-k-words" else self.tokens

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the search."""
        from attacks._nearest import P4DSearch  # slow; not needed to plan a run

        return P4DSearch(self, target, ctx).run
