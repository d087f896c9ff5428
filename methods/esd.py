"""ESD: fine-tune the denoiser to predict noise guided away from the concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bench import (
    Card,
    Concept,
    Context,
    Model,
    ParameterGroup,
    by_kind,
    fit,
    fused,
    sentences,
    trainable,
)

if TYPE_CHECKING:
    from torch import Tensor

    from methods._esd import EsdObjective


@dataclass(frozen=True)
class EsdSettings:
    """What is tuned, and what ESD's objective needs.

    Args:
        params: Weights that are trained: "esd-x" is cross-attention, "esd-u" almost everything else; see
            :data:`bench.ParameterGroup`.
        eta: Negative guidance in the paper's convention: 1 gives the target ``2 eps(null) - eps(c)``. (The
            diffusers script of 2025 counts from ``eps(c)``: its 2 is 1 here.)
        batch: Latents per step.
        start_guidance: Guidance scale while the student samples latents.
        xt_alignment: "exact" labels a latent with its own timestep. "compvis" is the published code: the
            first DDIM step is left out, and the label is one to three steps noisier than the latent (the
            lowest label belongs to a fully denoised latent).
        sampling_steps: DDIM steps of a full trajectory.
        reuse: Optimiser steps that share one trajectory; 1 is published, more is cheaper.
        templates: Also train on sentences such as "a photo of a {c}"; ``False`` is published.
    """

    params: ParameterGroup = by_kind(nsfw="esd-u", style="esd-x", object="esd-u")
    eta: Annotated[float, Field(ge=0)] = 1.0
    batch: Annotated[int, Field(ge=1)] = 1
    start_guidance: Annotated[float, Field(ge=0)] = 3.0
    xt_alignment: Literal["exact", "compvis"] = "compvis"
    sampling_steps: Annotated[int, Field(ge=2, le=1000)] = 50
    reuse: Annotated[int, Field(ge=1)] = 1
    templates: bool = False

    def objective(self, teacher: Model, concept: Concept, seed: int) -> EsdObjective:
        """Return ESD's objective with these settings."""
        from methods._esd import EsdObjective  # slow; not needed to plan a run

        texts = sentences(concept) if self.templates else concept.phrases
        return EsdObjective(self, teacher, texts, seed)


@dataclass(frozen=True)
class ESD(EsdSettings):
    """Erased Stable Diffusion (Gandikota et al., Erasing Concepts from Diffusion Models).

    Defaults are the paper's, as in its first code release: ESD-u for nudity and objects, ESD-x for styles,
    1000 steps of Adam at 1e-5, batch 1. ESD-u trains norms, but neither the time embedding nor the output
    layer (SD v1.4: 598 tensors, 813,495,680 values). "full" is the whole denoiser.

    Args:
        steps: Optimiser steps.
        lr: Learning rate of Adam.
    """

    card: ClassVar = Card(
        "Erasing Concepts from Diffusion Models",
        "https://arxiv.org/abs/2303.07345",
        "https://github.com/rohitgandikota/erasing",
        version=2,
    )

    steps: Annotated[int, Field(ge=1)] = 1000
    lr: Annotated[float, Field(gt=0)] = 1e-5

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Train the model to predict the guided noise of a frozen copy."""
        return self.tune(model, concept, ctx)

    def tune(
        self, model: Model, concept: Concept, ctx: Context, keep: Mapping[str, Tensor] | None = None
    ) -> Model:
        """Train; weights stay zero where ``keep``, masks by parameter name, is false."""
        import torch

        teacher = model.copy() if keep else model.original()  # which has not been pruned
        objective = self.objective(teacher, concept, ctx.seed("esd"))
        params = model.parameters(self.params)

        def spare_pruned() -> None:
            for name in keep.keys() & params.keys() if keep else ():
                params[name].grad *= keep[name]  # type: ignore[index, operator]

        with trainable(params.values()):
            optimizer = torch.optim.Adam(params.values(), lr=self.lr, **fused(params.values()))
            fit(lambda: objective.draw(model), optimizer, self.steps, ctx, before_step=spare_pruned)
        return model
