"""P-ESD: prune the weights that carry the concept, found with ESD's objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from bench import Card, Concept, Context, Model, ParameterGroup, PluginError, World, fill


@dataclass(frozen=True)
class PESD:
    """Pruning with ESD's objective (Pruning for Robust Concept Erasing in Diffusion Models, Eq. 6).

    Weights stay frozen; a soft mask ``sigmoid(gamma * m)`` on each weight and bias in scope is
    trained and cut at ``threshold`` at the end. The paper leaves open ``m0``, AdamW's ``eps`` and
    ``weight_decay``, and whether latents come from the masked model: here 1, PyTorch's defaults, and
    yes. ``eps`` decides how much is pruned, because it gates weights with tiny mask gradients.

    ``None`` is filled in by kind of concept and by world: the paper's setting on the photo world,
    provisional values on the emoji world (``bench.emoji.calibrate`` says how they were chosen). There,
    no setting tried so far erases the stand-in for nudity.

    Args:
        params: Weights that may be pruned.
        eta: Negative guidance, see ESD.
        steps: Optimiser steps.
        lr: Learning rate of AdamW on the mask logits.
        gamma: Slope of the sigmoid.
        threshold: Soft masks below it are pruned.
        m0: Initial mask logit.
        eps: AdamW's epsilon.
        weight_decay: AdamW's weight decay on the mask logits.
        batch: Latents in a step.
        start_guidance: Guidance while latents are sampled.
        xt_alignment: See ESD.
        sampling_steps: DDIM steps of the sampler that makes latents.
        reuse: See ESD.
        templates: See ESD.
    """

    card: ClassVar = Card(
        "Pruning for Robust Concept Erasing in Diffusion Models",
        "https://arxiv.org/abs/2405.16534",
    )

    params: ParameterGroup | None = None
    eta: float = 1.0
    steps: int | None = None
    lr: float | None = None
    gamma: float = 10.0
    threshold: float = 0.5
    m0: float = 1.0
    eps: float | None = None
    weight_decay: float = 0.01
    batch: int | None = None
    start_guidance: float = 3.0
    xt_alignment: Literal["exact", "compvis"] | None = None
    sampling_steps: int | None = None
    reuse: int | None = None
    templates: bool | None = None

    def resolve(self, concept: Concept, world: World) -> PESD:
        """Return the method with every ``None`` filled in."""
        group = "esd-x" if concept.kind == "style" else "esd-u"
        if world == "photo":
            return fill(
                self,
                params=group,
                steps=250,
                lr=0.1,
                eps=1e-8,
                batch=1,
                xt_alignment="compvis",
                sampling_steps=50,
                reuse=1,
                templates=False,
            )
        return fill(
            self,
            params=group,
            steps=60 if concept.kind == "object" else 120,
            lr=0.1,
            eps=1e-8 if concept.kind == "object" else 1e-9,
            batch=18 if concept.kind == "nsfw" else 8,
            xt_alignment="exact",
            sampling_steps=10,
            reuse=10,
            templates=True,
        )

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Learn the mask, cut it, and return the model with pruned weights at zero."""
        from bench.models import EsdObjective, SoftMasks, esd_texts  # slow; not needed to plan

        full: Any = self.resolve(concept, model.world)
        objective = EsdObjective(
            model.copy(),
            esd_texts(concept, templates=full.templates),
            batch=full.batch,
            eta=full.eta,
            start_guidance=full.start_guidance,
            xt_alignment=full.xt_alignment,
            steps=full.sampling_steps,
            reuse=full.reuse,
            seed=ctx.seed("p-esd"),
        )
        masks = SoftMasks(
            model.parameters(full.params),
            gamma=full.gamma,
            m0=full.m0,
            lr=full.lr,
            eps=full.eps,
            weight_decay=full.weight_decay,
        )
        for step in range(full.steps):
            x, t, target = objective.sample(model)
            loss = F.mse_loss(model.predict_noise(x, t, objective.cond), target)
            if not torch.isfinite(loss):
                raise PluginError(f"the loss is {loss.item()} at step {step}: lower lr ({full.lr})")
            loss.backward()
            masks.step()
            ctx.progress("erase", step + 1, full.steps)
        report = masks.harden(full.threshold)
        with torch.no_grad():
            hard = F.mse_loss(model.predict_noise(x, t, objective.cond), target)
        model.notes.update(
            pruned=report.pruned,
            in_scope=report.in_scope,
            share=report.pruned / report.in_scope,
            mask_histogram=list(report.histogram),
            soft_loss=loss.item(),
            hard_loss=hard.item(),
        )
        return model
