"""P-AC: prune the weights that carry the concept, found with AC's objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bench import Card, Concept, Context, Model, ParameterGroup, by_kind
from methods.ac import AcSettings
from methods.p_esd import MaskSettings


@dataclass(frozen=True)
class PAC(MaskSettings, AcSettings):
    """Pruning with AC's objective (Pruning for Robust Concept Erasing in Diffusion Models, Eq. 3 and 6).

    Like P-ESD, with AC's images and prompts and the original model's prediction for the anchor; without
    prior preservation, which Eq. 3 does not have. Scope: cross-attention for styles, all Linear and
    Conv2d modules for nudity; the paper does not report objects, which are treated like nudity.
    """

    card: ClassVar = Card(
        "Pruning for Robust Concept Erasing in Diffusion Models",
        "https://arxiv.org/abs/2405.16534",
        version=2,
    )

    params: ParameterGroup = by_kind(nsfw="full", style="esd-x", object="full")
    teacher: Literal["student", "frozen"] = "frozen"
    prior: Annotated[float, Field(ge=0)] = 0.0
    steps: Annotated[int, Field(ge=1)] = 1000
    lr: Annotated[float, Field(gt=0)] = 0.01

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Learn masks with AC's objective and prune."""
        objective = self.objective(model, concept, ctx, ctx.seed("p-ac"))
        return self.prune(model, self.params, objective, ctx)
