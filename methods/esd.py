"""ESD: fine-tune the denoiser to predict noise guided away from the concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from bench import Card, Concept, Context, Model, ParameterGroup, PluginError, World, fill

if TYPE_CHECKING:
    from torch import Tensor

    from bench.models import EsdObjective


@dataclass(frozen=True)
class EsdSettings:
    """What is tuned, and what ESD's objective needs. ``None`` is filled in by kind and by world.

    Args:
        params: Weights that may change; "esd-u" is all but cross-attention, "esd-x" cross-attention.
        eta: Negative guidance in the paper's convention: 1 asks for ``2 eps(null) - eps(c)``.
        batch: Latents in a step.
        start_guidance: Guidance while latents are sampled from the student.
        xt_alignment: "compvis" labels latents as the published code does, "exact" as they are.
        sampling_steps: DDIM steps of the sampler that makes latents.
        reuse: Steps that share a sampled trajectory; 1 is published, more is a cheaper deviation.
        templates: Also train on "a photo of a {c}" and the like; ``False`` is published.
    """

    params: ParameterGroup | None = None
    eta: float = 1.0
    batch: int | None = None
    start_guidance: float = 3.0
    xt_alignment: Literal["exact", "compvis"] | None = None
    sampling_steps: int | None = None
    reuse: int | None = None
    templates: bool | None = None

    def resolve(self, concept: Concept, world: World) -> Self:
        """Return the settings with every ``None`` filled in."""
        here = {"params": "esd-x" if concept.kind == "style" else "esd-u"}
        if world == "photo":
            published = {"xt_alignment": "compvis", "sampling_steps": 50, "reuse": 1}
            return fill(self, **here, **published, batch=1, templates=False)
        cheaper = {"xt_alignment": "exact", "sampling_steps": 10, "reuse": 10}
        return fill(
            self, **here, **cheaper, batch=18 if concept.kind == "nsfw" else 8, templates=True
        )

    def objective(self, teacher: Model, concept: Concept, seed: int) -> EsdObjective:
        """Return ESD's objective with these settings, which must be resolved."""
        from bench.models import EsdObjective, esd_texts  # slow; not needed to plan a run

        full: Any = self
        return EsdObjective(
            teacher,
            esd_texts(concept, templates=full.templates),
            batch=full.batch,
            eta=full.eta,
            start_guidance=full.start_guidance,
            xt_alignment=full.xt_alignment,
            steps=full.sampling_steps,
            reuse=full.reuse,
            seed=seed,
        )


@dataclass(frozen=True)
class ESD(EsdSettings):
    """Erased Stable Diffusion (Gandikota et al., Erasing Concepts from Diffusion Models).

    Photo-world defaults are the paper's setting as its first code release has it: ESD-u for nudity and
    objects, ESD-x for styles, 1000 steps of Adam at 1e-5, batch 1. On the emoji world (a model 270 times
    smaller) steps, learning rate and batch are chosen by ``bench.emoji.calibrate``.

    Args:
        steps: Optimiser steps.
        lr: Learning rate of Adam.
    """

    card: ClassVar = Card(
        "Erasing Concepts from Diffusion Models",
        "https://arxiv.org/abs/2303.07345",
        "https://github.com/rohitgandikota/erasing",
    )

    steps: int | None = None
    lr: float | None = None

    def resolve(self, concept: Concept, world: World) -> Self:
        """Return the method with every ``None`` filled in."""
        full = super().resolve(concept, world)
        if world == "photo":
            return fill(full, steps=1000, lr=1e-5)
        return fill(full, steps=100, lr={"nsfw": 5e-5, "style": 2e-3, "object": 1e-4}[concept.kind])

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Distil the guided noise of a frozen teacher into the model."""
        return self.tune(model, concept, ctx)

    def tune(
        self, model: Model, concept: Concept, ctx: Context, keep: Mapping[str, Tensor] | None = None
    ) -> Model:
        """Train; where ``keep`` is false, by parameter name, a weight stays zero."""
        import torch
        import torch.nn.functional as F

        full: Any = self.resolve(concept, model.world)
        objective = full.objective(model.copy(), concept, ctx.seed("esd"))
        params = model.parameters(full.params)
        for p in params.values():
            p.requires_grad_(True)
        optimizer = torch.optim.Adam(params.values(), lr=full.lr)
        for step in range(full.steps):
            x, t, target = objective.sample(model)
            loss = F.mse_loss(model.predict_noise(x, t, objective.cond), target)
            if not torch.isfinite(loss):
                raise PluginError(f"the loss is {loss.item()} at step {step}: lower lr ({full.lr})")
            optimizer.zero_grad()
            loss.backward()
            with torch.no_grad():
                for name, kept in (keep or {}).items():
                    if name in params:
                        params[name].grad *= kept  # type: ignore[operator]
            optimizer.step()
            ctx.progress("erase", step + 1, full.steps)
        for p in params.values():
            p.requires_grad_(False)
        return model
