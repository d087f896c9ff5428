"""Pre-Prune: prune small weights first, then erase with ESD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from bench import Card, Concept, Context, Model
from methods.esd import ESD


@dataclass(frozen=True)
class PrePrune(ESD):
    """Magnitude pruning before ESD, a comparison of Pruning for Robust Concept Erasing (arXiv 2405.16534).

    The smallest ``share`` of the denoiser's Linear and Conv2d weights, over all of them together, is
    zeroed and stays exactly zero while ESD trains the rest. The paper does not say what "global" spans:
    here the whole denoiser, biases and norms left alone.

    Args:
        share: Share of the weights that is pruned.
    """

    card: ClassVar = Card(
        "Pruning for Robust Concept Erasing in Diffusion Models",
        "https://arxiv.org/abs/2405.16534",
        version=2,
    )

    share: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Prune, then tune what is left."""
        from methods._masks import prune_smallest

        return self.tune(model, concept, ctx, keep=prune_smallest(model, self.share))
