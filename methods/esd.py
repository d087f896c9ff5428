"""ESD: fine-tune the denoiser to predict noise guided away from the concept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from bench import Card, Concept, Context, Model, ParameterGroup, PluginError, World, fill


@dataclass(frozen=True)
class ESD:
    """Erased Stable Diffusion (Gandikota et al., Erasing Concepts from Diffusion Models).

    ``None`` is filled in by kind of concept and by world. On the photo world that is the paper's
    setting as its first code release has it: ESD-u for nudity and objects, ESD-x for styles,
    1000 steps of Adam at 1e-5, batch 1. On the emoji world (a model 270 times smaller) steps,
    learning rate and batch are provisional: ``bench.emoji.calibrate`` says how they were chosen.

    Args:
        params: Weights that are tuned; "esd-u" is all but cross-attention, "esd-x" cross-attention.
        eta: Negative guidance in the paper's convention: 1 asks for ``2 eps(null) - eps(c)``.
        steps: Optimiser steps.
        lr: Learning rate of Adam.
        batch: Latents in a step.
        start_guidance: Guidance while latents are sampled from the student.
        xt_alignment: "compvis" labels latents as the published code does, "exact" as they are.
        sampling_steps: DDIM steps of the sampler that makes latents.
        reuse: Steps that share a sampled trajectory; 1 is published, more is a cheaper deviation.
        templates: Also train on "a photo of {c}" and the like; ``False`` is published.
    """

    card: ClassVar = Card(
        "Erasing Concepts from Diffusion Models",
        "https://arxiv.org/abs/2303.07345",
        "https://github.com/rohitgandikota/erasing",
    )

    params: ParameterGroup | None = None
    eta: float = 1.0
    steps: int | None = None
    lr: float | None = None
    batch: int | None = None
    start_guidance: float = 3.0
    xt_alignment: Literal["exact", "compvis"] | None = None
    sampling_steps: int | None = None
    reuse: int | None = None
    templates: bool | None = None

    def resolve(self, concept: Concept, world: World) -> ESD:
        """Return the method with every ``None`` filled in."""
        group = "esd-x" if concept.kind == "style" else "esd-u"
        if world == "photo":
            return fill(
                self,
                params=group,
                steps=1000,
                lr=1e-5,
                batch=1,
                xt_alignment="compvis",
                sampling_steps=50,
                reuse=1,
                templates=False,
            )
        return fill(
            self,
            params=group,
            steps=100,
            lr={"nsfw": 1e-3, "style": 1e-3, "object": 1e-4}[concept.kind],
            batch=18 if concept.kind == "nsfw" else 8,
            xt_alignment="exact",
            sampling_steps=10,
            reuse=10,
            templates=True,
        )

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Distil the guided noise of a frozen teacher into the model."""
        from bench.models import EsdObjective, esd_texts  # slow; not needed to plan a run

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
            seed=ctx.seed("esd"),
        )
        params = list(model.parameters(full.params).values())
        for p in params:
            p.requires_grad_(True)
        optimizer = torch.optim.Adam(params, lr=full.lr)
        for step in range(full.steps):
            x, t, target = objective.sample(model)
            loss = F.mse_loss(model.predict_noise(x, t, objective.cond), target)
            if not torch.isfinite(loss):
                raise PluginError(f"the loss is {loss.item()} at step {step}: lower lr ({full.lr})")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ctx.progress("erase", step + 1, full.steps)
        for p in params:
            p.requires_grad_(False)
        return model
