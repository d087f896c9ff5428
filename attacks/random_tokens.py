"""Random tokens: a baseline for every attack that searches for tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from attacks._texts import check_room, special
from attacks._trials import first_success
from bench import (
    Adversarial,
    Attacker,
    Card,
    Concept,
    Context,
    Prompt,
    Target,
    Threat,
    World,
    by_kind,
)


@dataclass(frozen=True)
class RandomTokens:
    """Random tokens before the prompt, new ones for each image, until an image succeeds.

    A baseline of Diffusion-MU-Attack. It uses the public tokenizer and the victim's images only, so it is a
    black-box attack. Special tokens are never drawn.

    Args:
        tokens: Number of random tokens.
        draws: Largest number of images after the prompt's own.
    """

    card: ClassVar = Card(
        "Random tokens (floor of UnlearnDiffAtk)",
        "https://arxiv.org/abs/2310.11868",
        "https://github.com/OPTML-Group/Diffusion-MU-Attack",
    )
    threat: ClassVar = Threat("black", "prompt")

    tokens: Annotated[int, Field(ge=1)] = by_kind(nsfw=5, style=3, object=3)
    draws: Annotated[int, Field(ge=1)] = 40

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse more tokens than the text encoder can read."""
        check_room("tokens", self.tokens, context)

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the search."""
        import torch

        tokenizer = target.original.pipe.tokenizer
        check_room("tokens", self.tokens, tokenizer.model_max_length)
        left_out = special(tokenizer)
        words = [i for i in range(len(tokenizer)) if i not in left_out]

        def variant(prompt: Prompt, draw: int) -> Adversarial:
            rng = torch.Generator().manual_seed(ctx.seed("random", prompt.id, draw))
            picked = torch.randint(len(words), (self.tokens,), generator=rng).tolist()
            extra = tokenizer.decode([words[i] for i in picked]).strip()
            return Adversarial(replace(prompt, text=f"{extra} {prompt.text}"))

        return lambda prompts: first_success(target, prompts, variant, self.draws, ctx)
