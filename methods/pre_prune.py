"""Pre-Prune: prune small weights first, then erase with ESD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from bench import Card, Concept, Context, Model
from methods.esd import ESD


@dataclass(frozen=True)
class PrePrune(ESD):
    """Magnitude pruning before ESD, a baseline of Pruning for Robust Concept Erasing (arXiv 2405.16534).

    The pruned weights stay exactly zero while ESD trains the others. The paper does not say what "global"
    means: here all weights of the denoiser are ranked together, without biases and norms.

    Args:
        share: Share of the denoiser's Linear and Conv2d weights that is pruned.
    """

    card: ClassVar = Card(
        "Pruning for Robust Concept Erasing in Diffusion Models",
        "https://arxiv.org/abs/2405.16534",
        version=2,
    )

    share: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Prune, then train the other weights with ESD."""
        from methods._masks import prune_smallest

        return self.tune(model, concept, ctx, keep=prune_smallest(model, self.share))
