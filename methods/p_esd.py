"""P-ESD: prune the weights that carry the concept, found with ESD's objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from bench import Batch, Card, Concept, Context, Model, ParameterGroup, fit, trainable
from methods.esd import EsdSettings

if TYPE_CHECKING:
    from methods._ac import AcObjective
    from methods._esd import EsdObjective


@dataclass(frozen=True)
class MaskSettings:
    """How masks are learned.

    Args:
        steps: Optimiser steps.
        lr: Learning rate of AdamW on the mask logits.
        gamma: Slope of the sigmoid.
        threshold: Weights whose mask ends below it are pruned.
        m0: Initial mask logit; with gamma 10, a logit of 1 hardly changes a weight.
        eps: AdamW's epsilon. It decides how many weights are pruned: a weight whose mask gradient stays far
            below it is kept.
        weight_decay: AdamW's weight decay on the mask logits.
    """

    steps: Annotated[int, Field(ge=1)] = 250
    lr: Annotated[float, Field(gt=0)] = 0.1
    gamma: Annotated[float, Field(gt=0)] = 10.0
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    m0: float = 1.0
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01

    def prune(
        self,
        model: Model,
        group: ParameterGroup,
        objective: EsdObjective | AcObjective,
        ctx: Context,
    ) -> Model:
        """Learn masks that minimise an objective; set the pruned weights to zero."""
        from methods._masks import SoftMasks, prunable  # slow; not needed to plan a run

        latest: list[Batch] = []

        def draw() -> Batch:
            latest[:] = [objective.draw(model)]
            return latest[0]

        chosen = prunable(model, group)
        with trainable(chosen.values()):
            masks = SoftMasks(chosen, self, prunable(model.original(), group))
            losses = fit(draw, masks, self.steps, ctx)
        notes = masks.harden()
        model.notes.update(notes, soft_loss=losses[-1], hard_loss=latest[0].value())
        return model


@dataclass(frozen=True)
class PESD(MaskSettings, EsdSettings):
    """Pruning with ESD's objective (Pruning for Robust Concept Erasing in Diffusion Models, Eq. 6).

    Weights do not change; a soft mask ``sigmoid(gamma * m)`` on each weight and bias in scope is trained
    and cut at ``threshold`` at the end. Scope: Linear and Conv2d outside cross-attention for nudity and
    objects ("esd-u", here with the time embedding and the output layer), those of cross-attention for
    styles. The paper does not state ``m0``, AdamW's ``eps`` and ``weight_decay``, and whether latents
    come from the masked model: here 1, PyTorch's defaults, and yes. ``make calibrate`` chooses the emoji
    world's values and shows what they do: a tenth of ``eps`` prunes five to ten times more; ``m0`` 1.5 or
    ``gamma`` 20 prunes nothing; ``m0`` 0.5 prunes thirty times more and damages other concepts.
    """

    card: ClassVar = Card(
        "Pruning for Robust Concept Erasing in Diffusion Models",
        "https://arxiv.org/abs/2405.16534",
    )

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Learn masks with ESD's objective and prune."""
        objective = self.objective(model.original(), concept, ctx.seed("p-esd"))
        return self.prune(model, self.params, objective, ctx)
