"""Post-Prune: erase with ESD, then prune small weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from bench import Card, Concept, Context, Model
from methods.esd import ESD


@dataclass(frozen=True)
class PostPrune(ESD):
    """Magnitude pruning after ESD, a baseline of Pruning for Robust Concept Erasing (arXiv 2405.16534).

    Args:
        share: Share of the denoiser's Linear and Conv2d weights that is pruned; all are ranked together.
    """

    card: ClassVar = Card(
        "Pruning for Robust Concept Erasing in Diffusion Models",
        "https://arxiv.org/abs/2405.16534",
        version=2,
    )

    share: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Train with ESD, then prune."""
        from methods._masks import prune_smallest

        erased = self.tune(model, concept, ctx)
        prune_smallest(erased, self.share)
        return erased
