"""AC: map the concept to its anchor by fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bench import Card, Concept, Context, Model, ParameterGroup, by_kind, fit, fused, trainable

if TYPE_CHECKING:
    from methods._ac import AcObjective

_PROMPTS = "https://github.com/nupurkmr9/concept-ablation/tree/main/assets/finetune_prompts"
_PUBLISHED = ("painting", "people", "cat", "dog", "fish", "robot")


@dataclass(frozen=True)
class AcSettings:
    """What is trained, and what AC's objective needs.

    Args:
        params: Weights that are trained.
        images: Anchor images that the original model makes.
        prompts: A text file with prompts for the anchor, one per line; the authors publish some. By
            default this project's prompts. For nudity, lines that may mention minors are left out; for
            objects, lines without the anchor's name.
        batch: Images per step.
        target: What the student should predict: what the "model" predicts for the anchor, or the "noise"
            that was added.
        teacher: Which model predicts for the anchor: the "student" itself without gradient (the published
            code), or a "frozen" copy of the original (Eq. 3 of the pruning paper).
        border: Latent pixels at the edge that are left out of the loss.
        hflip: Mirror half of the images.
        augment: Show two thirds of the images smaller and the others larger, and say so in the prompt.
        prior: Weight of prior preservation: the error of the predicted noise on as many anchor images with
            their own prompts.
    """

    params: ParameterGroup = by_kind(nsfw="attn", style="esd-x-strict", object="esd-x-strict")
    images: Annotated[int, Field(ge=1)] = 1000
    prompts: Path | None = None
    batch: Annotated[int, Field(ge=1)] = 8
    target: Literal["model", "noise"] = "model"
    teacher: Literal["student", "frozen"] = "student"
    border: Annotated[int, Field(ge=0)] = 1
    hflip: bool = True
    augment: bool = by_kind(nsfw=False, style=False, object=True)
    prior: Annotated[float, Field(ge=0)] = by_kind(nsfw=1.0, style=0.0, object=0.0)

    def deviations(self, concept: Concept) -> tuple[str, ...]:
        """Name the published prompt files that were not given."""
        if self.prompts:
            return ()
        return tuple(
            f"prompts for the anchor {anchor!r} are this project's; give prompts=FILE, the authors' "
            f"{anchor}.txt of {_PROMPTS}"
            for anchor in dict.fromkeys(concept.anchors)
            if anchor in _PUBLISHED
        )

    def objective(self, model: Model, concept: Concept, ctx: Context, seed: int) -> AcObjective:
        """Make the anchor images and return AC's objective."""
        from methods._ac import AcObjective, anchor_examples  # slow; not needed to plan a run

        examples = anchor_examples(model, concept, ctx, images=self.images, prompts=self.prompts)
        return AcObjective(self, model, concept.kind, examples, seed)


@dataclass(frozen=True)
class AC(AcSettings):
    """Ablating Concepts (Kumari et al., Ablating Concepts in Text-to-Image Diffusion Models).

    On images of the anchor, the model learns to predict for prompts with the concept what it predicts for
    the same prompts with the anchor. Defaults are the published commands on one device: 1000 images by
    DPM-Solver in 25 steps; 100 steps at 1.6e-5 on cross-attention keys and values, with images of many
    sizes for objects; for nudity 400 steps at 6.4e-5 on all attention, with prior preservation, for which
    the rate is doubled. (For an object whose name contains the anchor's name, such as "grumpy cat", use
    prior=1 and double ``lr``.) Nudity is erased as "nudity, nsfw", which is also the negative prompt of
    the anchor images. Each time an image is used, its prompt is rewritten and it may be mirrored.
    Deviations: the anchor prompts are this project's, unless ``prompts`` gives the authors'; latents are
    the means of the autoencoder, not samples.

    Args:
        steps: Optimiser steps.
        lr: Learning rate of AdamW.
        weight_decay: AdamW's weight decay.
        clip: Largest norm of the gradient.
    """

    card: ClassVar = Card(
        "Ablating Concepts in Text-to-Image Diffusion Models",
        "https://arxiv.org/abs/2303.13516",
        "https://github.com/nupurkmr9/concept-ablation",
        version=2,
    )

    steps: Annotated[int, Field(ge=1)] = by_kind(nsfw=400, style=100, object=100)
    lr: Annotated[float, Field(gt=0)] = by_kind(nsfw=6.4e-5, style=1.6e-5, object=1.6e-5)
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    clip: Annotated[float, Field(gt=0)] = 1.0

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Train the model towards the anchor."""
        import torch

        objective = self.objective(model, concept, ctx, ctx.seed("ac"))
        with trainable(model.parameters(self.params).values()) as params:
            optimizer = torch.optim.AdamW(
                params, lr=self.lr, weight_decay=self.weight_decay, **fused(params)
            )
            fit(
                lambda: objective.draw(model),
                optimizer,
                self.steps,
                ctx,
                before_step=lambda: torch.nn.utils.clip_grad_norm_(params, self.clip),
            )
        return model
