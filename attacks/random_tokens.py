"""Random tokens: a floor for every attack that searches for tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from attacks._trials import first_success
from bench import (
    Adversarial,
    Card,
    Concept,
    Context,
    Prompt,
    Target,
    Threat,
    World,
    fill,
)


@dataclass(frozen=True)
class RandomTokens:
    """Random tokens in front of the prompt, a new draw for each image, until one succeeds.

    The floor of Diffusion-MU-Attack. Tokens come from the public tokenizer; the victim is only asked for
    images, so it is a black-box attack. Special tokens are never drawn.

    Args:
        tokens: Random tokens; 5 for nudity, 3 otherwise.
        draws: Images at most, after the prompt's own.
    """

    card: ClassVar = Card(
        "Random tokens (floor of UnlearnDiffAtk)",
        "https://arxiv.org/abs/2310.11868",
        "https://github.com/OPTML-Group/Diffusion-MU-Attack",
    )
    threat: ClassVar = Threat("black", "prompt")

    tokens: int | None = None
    draws: int = 40

    def resolve(self, concept: Concept, world: World) -> RandomTokens:
        """Return the attack with the number of tokens filled in."""
        return fill(self, tokens=5 if concept.kind == "nsfw" else 3)

    def prepare(
        self, target: Target, ctx: Context
    ) -> Callable[[Sequence[Prompt]], Iterator[Adversarial]]:
        """Return the search."""
        import torch

        full: Any = self.resolve(target.concept, target.original.world)
        tokenizer = target.original.pipe.tokenizer
        special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
        words = [i for i in range(len(tokenizer)) if i not in special]

        def variant(prompt: Prompt, draw: int) -> Prompt:
            rng = torch.Generator().manual_seed(ctx.seed("random", prompt.id, draw))
            picked = torch.randint(len(words), (full.tokens,), generator=rng).tolist()
            return replace(
                prompt, text=f"{tokenizer.decode([words[i] for i in picked]).strip()} {prompt.text}"
            )

        return lambda prompts: until_success(target, prompts, variant, full.draws)


def until_success(
    target: Target,
    prompts: Sequence[Prompt],
    variant: Callable[[Prompt, int], Prompt],
    draws: int,
) -> Iterator[Adversarial]:
    """Try each prompt, then its variants 1, 2, ... ``draws``, all prompts at once, until one succeeds."""
    return first_success(target, prompts, lambda p, i: Adversarial(variant(p, i)), draws)
