"""P4D by its authors: sixteen free tokens, or one before every three tokens of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from attacks._token_attack import FreeTokens
from bench import Attacker, Card, Concept, Context, Prompt, Target, Threat, World

if TYPE_CHECKING:
    from attacks._insertion import Insertion


@dataclass(frozen=True)
class P4DOfficial(FreeTokens):
    """Prompting4Debugging (Chin et al.), the authors' algorithm, batched over prompts.

    Each step draws a timestep; the victim with the free tokens should predict the noise that the original
    model predicts for the prompt. After every ``check`` steps the nearest tokens are decoded, and an
    image is made from the string. The result is the string whose image is most similar to the original
    model's image of the prompt.

    Deviations: the authors make three images of the final string, and any of them may succeed (here one,
        with
    the prompt's seed). They take the most unsafe of three images as the target (here the prompt's own
    image). They attack only prompts on which the erased model is safe (here a prompt that succeeds as it is
    counts as found). Checks use the model's own sampler and the prompt's seed. A prompt is too long if its
    free tokens do not fit into the text encoder's context (variant "k"); it is not encoded in pieces.

    Args:
        variant: "n": ``tokens`` free tokens replace the prompt. "k": the prompt stays, with one free token
            before every three of its tokens; ``tokens`` is not used.
        iterations: Optimiser steps; fewer in the emoji world, for speed.
        check: Steps between two images.
        pixels: Value range of the target image for the autoencoder: "unit" is [0, 1], as in the published
            code; "signed" is [-1, 1], which the autoencoder expects.
        padding: What follows the end token: "zero" is token 0, as published; "end" is the end token again.
        similarity: The features that compare images: "clip-h14" (published), or "emoji-subject", the emoji
            world's judge of subjects.
    """

    card: ClassVar = Card(
        "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts",
        "https://arxiv.org/abs/2309.06135",
        "https://github.com/joycenerd/P4D",
        version=2,
    )
    threat: ClassVar = Threat("white", "prompt")

    tokens: Annotated[int, Field(ge=1)] = 16
    lr: Annotated[float, Field(gt=0)] = 0.1
    variant: Literal["n", "k"] = "n"
    iterations: Annotated[int, Field(ge=1)] = 3000
    check: Annotated[int, Field(ge=1)] = 50
    pixels: Literal["unit", "signed"] = "unit"
    padding: Literal["zero", "end"] = "zero"
    similarity: Literal["clip-h14", "emoji-subject"] = "clip-h14"

    def __post_init__(self) -> None:
        if self.iterations < self.check:
            raise ValueError(
                f"check={self.check}: expected at most iterations={self.iterations}, the number of steps"
            )

    @property
    def insertion(self) -> Insertion:
        """Where the free tokens are."""
        return "replace" if self.variant == "n" else "per-k-words"

    @property
    def steps(self) -> int:
        """Optimiser steps between two images."""
        return self.check

    def schedule(self) -> list[int]:
        """Return -1 for each round, because timesteps are drawn."""
        return [-1] * (self.iterations // self.check)

    def most_images(self) -> int:
        """Return the most images of a prompt: its own, one at each check, and the best string's again."""
        return 2 + len(self.schedule())

    def free(self, ids: Sequence[int]) -> int:
        """Return the number of free tokens; in variant "k" it depends on the prompt's length."""
        return self.tokens if self.variant == "n" else len(ids) // 3 + 1

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse more free tokens than the text encoder can read."""
        if self.variant == "n":
            super().check_plan(concept, world, prompts, context)

    def assets(self) -> tuple[str, ...]:
        """Return the image encoder's name."""
        return ("clip-vit-h14",) if self.similarity == "clip-h14" else ()

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the search."""
        from attacks._p4d_official import (  # slow; not needed to plan a run
            OfficialSearch,
            clip_features,
            emoji_features,
        )

        features = emoji_features if self.similarity == "emoji-subject" else clip_features(ctx)
        return OfficialSearch(self, target, ctx, features).run
