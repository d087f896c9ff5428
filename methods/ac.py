"""AC: map the concept to its anchor by fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bench import Card, Concept, Context, Model, ParameterGroup, by_kind, fit, trainable

if TYPE_CHECKING:
    from methods._ac import AcObjective


@dataclass(frozen=True)
class AcSettings:
    """What is tuned, and what AC's objective needs.

    Args:
        params: Weights that may change.
        images: Anchor images that the original model makes.
        batch: Images in a step.
        target: "model" asks for the anchor's prediction, "noise" for the noise that was added.
        teacher: Whose prediction of the anchor: the "student" 's own without gradient, or "frozen".
        border: Latent pixels at the edge that do not count.
        hflip: Mirror half of the images.
    """

    params: ParameterGroup = by_kind(nsfw="attn", style="esd-x-strict", object="esd-x-strict")
    images: Annotated[int, Field(ge=1)] = 1000
    batch: Annotated[int, Field(ge=1)] = 8
    target: Literal["model", "noise"] = "model"
    teacher: Literal["student", "frozen"] = "student"
    border: Annotated[int, Field(ge=0)] = 1
    hflip: bool = True

    def objective(self, model: Model, concept: Concept, ctx: Context, seed: int) -> AcObjective:
        """Make the anchor images and return AC's objective."""
        from methods._ac import AcObjective, anchor_latents  # slow; not needed to plan a run

        texts, latents = anchor_latents(model, concept, ctx, images=self.images)
        return AcObjective(
            model,
            concept,
            texts,
            latents,
            batch=self.batch,
            target=self.target,
            teacher=self.teacher,
            border=self.border,
            hflip=self.hflip,
            seed=seed,
        )


@dataclass(frozen=True)
class AC(AcSettings):
    """Ablating Concepts (Kumari et al., Ablating Concepts in Text-to-Image Diffusion Models).

    The noise that is predicted for prompts with the concept is drawn to what is predicted for the same
    prompts with the anchor, on images of the anchor. Photo-world defaults are the published settings on
    one device: 1000 images; 100 steps at 1.6e-5 on cross-attention keys and values, and for nudity 400
    steps at 6.4e-5 on all attention. The anchor prompts are this project's. Left out: size augmentation,
    the prior-preservation term that the authors' nudity recipe adds, and drawing latents from the
    autoencoder's posterior (its mean is taken).

    Args:
        steps: Optimiser steps.
        lr: Learning rate of AdamW.
        weight_decay: AdamW's.
        clip: Largest norm of the gradient.
    """

    card: ClassVar = Card(
        "Ablating Concepts in Text-to-Image Diffusion Models",
        "https://arxiv.org/abs/2303.13516",
        "https://github.com/nupurkmr9/concept-ablation",
    )

    steps: Annotated[int, Field(ge=1)] = by_kind(nsfw=400, style=100, object=100)
    lr: Annotated[float, Field(gt=0)] = by_kind(nsfw=6.4e-5, style=1.6e-5, object=1.6e-5)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Tune the model towards the anchor."""
        import torch

        objective = self.objective(model, concept, ctx, ctx.seed("ac"))
        with trainable(model.parameters(self.params).values()) as params:
            optimizer = torch.optim.AdamW(params, lr=self.lr, weight_decay=self.weight_decay)
            fit(
                lambda: objective.loss(model),
                optimizer,
                self.steps,
                ctx,
                before_step=lambda: torch.nn.utils.clip_grad_norm_(params, self.clip),
            )
        return model
