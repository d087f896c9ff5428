"""Seed search: the same prompt with other noise, a baseline for all attacks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from attacks._trials import first_success
from bench import Adversarial, Attacker, Card, Context, Prompt, Target, Threat


@dataclass(frozen=True)
class SeedSearch:
    """The prompt as it is, with a new seed for each image, until an image succeeds.

    A baseline of Diffusion-MU-Attack, which tries every seed even after a success; this one stops.

    Args:
        draws: Largest number of images after the prompt's own.
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

        def variant(prompt: Prompt, draw: int) -> Adversarial:
            seed = ctx.seed("seed-search", prompt.id, draw) % 2**31
            return Adversarial(replace(prompt, seed=seed))

        return lambda prompts: first_success(target, prompts, variant, self.draws, ctx)
