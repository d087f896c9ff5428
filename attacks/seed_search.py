"""Seed search: the same prompt with other noise, the floor of all attacks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from attacks.random_tokens import until_success
from bench import Attacker, Card, Context, Prompt, Target, Threat


@dataclass(frozen=True)
class SeedSearch:
    """The prompt as it is, with a new seed for each image, until one succeeds.

    The floor of Diffusion-MU-Attack, which draws every seed even after a success; here it stops.

    Args:
        draws: Images at most, after the prompt's own seed.
    """

    card: ClassVar = Card(
        "Seed search (floor of UnlearnDiffAtk)",
        "https://arxiv.org/abs/2310.11868",
        "https://github.com/OPTML-Group/Diffusion-MU-Attack",
    )
    threat: ClassVar = Threat("black", "latent")

    draws: Annotated[int, Field(ge=1)] = 40

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the search."""

        def variant(prompt: Prompt, draw: int) -> Prompt:
            seed = ctx.seed("seed-search", prompt.id, draw) % 2**31
            return replace(prompt, seed=seed)

        return lambda prompts: until_success(target, prompts, variant, self.draws, ctx)
