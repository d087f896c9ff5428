"""P-AC: prune the weights that carry the concept, found with AC's objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from bench import Card, Concept, Context, Model, ParameterGroup, PluginError, by_kind
from methods.ac import AcSettings


@dataclass(frozen=True)
class PAC(AcSettings):
    """Pruning with AC's objective (Pruning for Robust Concept Erasing in Diffusion Models, Eq. 3 and 6).

    As P-ESD, with AC's images and prompts and the original model's prediction of the anchor. Scope:
    cross-attention for styles, all Linear and Conv2d for nudity; objects, which the paper does not
    report, as nudity.

    Args:
        steps: Optimiser steps.
        lr: Learning rate of AdamW on the mask logits.
        gamma: Slope of the sigmoid.
        threshold: Soft masks below it are pruned.
        m0: Initial mask logit.
        eps: AdamW's epsilon; gates weights with tiny mask gradients.
        weight_decay: AdamW's weight decay on the mask logits.
    """

    card: ClassVar = Card(
        "Pruning for Robust Concept Erasing in Diffusion Models",
        "https://arxiv.org/abs/2405.16534",
    )

    params: ParameterGroup = by_kind(nsfw="full", style="esd-x", object="full")
    teacher: Literal["student", "frozen"] = "frozen"
    steps: Annotated[int, Field(ge=1)] = 1000
    lr: Annotated[float, Field(gt=0)] = 0.01
    gamma: Annotated[float, Field(gt=0)] = 10.0
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    m0: float = 1.0
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Learn the mask, cut it, and return the model with pruned weights at zero."""
        import torch

        from bench.models import SoftMasks

        objective = self.objective(model, concept, ctx, ctx.seed("p-ac"))
        masks = SoftMasks(
            model.parameters(self.params),
            gamma=self.gamma,
            m0=self.m0,
            lr=self.lr,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )
        for step in range(self.steps):
            loss = objective.loss(model)
            if not torch.isfinite(loss):
                raise PluginError(f"the loss is {loss.item()} at step {step}: lower lr ({self.lr})")
            loss.backward()
            masks.step()
            ctx.progress("erase", step + 1, self.steps)
        report = masks.harden(self.threshold)
        with torch.no_grad():
            hard = objective.loss(model)
        model.notes.update(report.notes(), soft_loss=loss.item(), hard_loss=hard.item())
        return model
