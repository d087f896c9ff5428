"""P-AC: prune the weights that carry the concept, found with AC's objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from bench import Card, Concept, Context, Model, PluginError, World, fill
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

    teacher: Literal["student", "frozen"] = "frozen"
    steps: int | None = None
    lr: float | None = None
    gamma: float = 10.0
    threshold: float = 0.5
    m0: float = 1.0
    eps: float | None = None
    weight_decay: float = 0.01

    def resolve(self, concept: Concept, world: World) -> Self:
        """Return the method with every ``None`` filled in."""
        params = "esd-x" if concept.kind == "style" else "full"
        if world == "photo":
            return fill(self, params=params, images=1000, steps=1000, lr=0.01, eps=1e-8)
        eps = {"object": 1e-6, "nsfw": 1e-7, "style": 1e-6}[concept.kind]  # bench.emoji.calibrate
        return fill(self, params=params, images=100, steps=100, lr=0.1, eps=eps)

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Learn the mask, cut it, and return the model with pruned weights at zero."""
        import torch

        from bench.models import SoftMasks

        full: Any = self.resolve(concept, model.world)
        objective = full.objective(model, concept, ctx, ctx.seed("p-ac"))
        masks = SoftMasks(
            model.parameters(full.params),
            gamma=full.gamma,
            m0=full.m0,
            lr=full.lr,
            eps=full.eps,
            weight_decay=full.weight_decay,
        )
        for step in range(full.steps):
            loss = objective.loss(model)
            if not torch.isfinite(loss):
                raise PluginError(f"the loss is {loss.item()} at step {step}: lower lr ({full.lr})")
            loss.backward()
            masks.step()
            ctx.progress("erase", step + 1, full.steps)
        report = masks.harden(full.threshold)
        with torch.no_grad():
            hard = objective.loss(model)
        model.notes.update(report.notes(), soft_loss=loss.item(), hard_loss=hard.item())
        return model
