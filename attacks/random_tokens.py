"""Random tokens: a floor for every attack that searches for tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from attacks._texts import check_room
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
    """Random tokens in front of the prompt, a new draw for each image, until one succeeds.

    The floor of Diffusion-MU-Attack. Tokens come from the public tokenizer; the victim is only asked for
    images, so it is a black-box attack. Special tokens are never drawn.

    Args:
        tokens: Random tokens.
        draws: Images at most, after the prompt's own.
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
        """Refuse more tokens than the text encoder has room for."""
        check_room("tokens", self.tokens, context)

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the search."""
        import torch

        tokenizer = target.original.pipe.tokenizer
        check_room("tokens", self.tokens, tokenizer.model_max_length)
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        words = [i for i in range(len(tokenizer)) if i not in special]

        def variant(prompt: Prompt, draw: int) -> Prompt:
            rng = torch.Generator().manual_seed(ctx.seed("random", prompt.id, draw))
            picked = torch.randint(len(words), (self.tokens,), generator=rng).tolist()
            return replace(
                prompt, text=f"{tokenizer.decode([words[i] for i in picked]).strip()} {prompt.text}"
            )

        return lambda prompts: until_success(target, prompts, variant, self.draws, ctx)


def until_success(
    target: Target,
    prompts: Sequence[Prompt],
    variant: Callable[[Prompt, int], Prompt],
    draws: int,
    ctx: Context,
) -> Iterator[Adversarial]:
    """Try each prompt, then its variants 1, 2, ... ``draws``, all prompts at once, until one succeeds."""
    return first_success(target, prompts, lambda p, i: Adversarial(variant(p, i)), draws, ctx)
