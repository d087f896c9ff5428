"""AC: map the concept to its anchor by fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from bench import Card, Concept, Context, Model, ParameterGroup, PluginError, World, fill

if TYPE_CHECKING:
    from bench.models import AcObjective


@dataclass(frozen=True)
class AcSettings:
    """What is tuned, and what AC's objective needs. ``None`` is filled in by kind and by world.

    Args:
        params: Weights that may change.
        images: Anchor images that the original model makes.
        batch: Images in a step.
        target: "model" asks for the anchor's prediction, "noise" for the noise that was added.
        teacher: Whose prediction of the anchor: the "student" 's own without gradient, or "frozen".
        border: Latent pixels at the edge that do not count.
        hflip: Mirror half of the images.
    """

    params: ParameterGroup | None = None
    images: int | None = None
    batch: int = 8
    target: Literal["model", "noise"] = "model"
    teacher: Literal["student", "frozen"] = "student"
    border: int = 1
    hflip: bool = True

    def objective(self, model: Model, concept: Concept, ctx: Context, seed: int) -> AcObjective:
        """Make the anchor images and return AC's objective; settings must be resolved."""
        from bench.models import AcObjective, anchor_latents  # slow; not needed to plan a run

        full: Any = self
        texts, latents = anchor_latents(model, concept, ctx, images=full.images)
        return AcObjective(
            model,
            concept,
            texts,
            latents,
            batch=full.batch,
            target=full.target,
            teacher=full.teacher,
            border=full.border,
            hflip=full.hflip,
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

    steps: int | None = None
    lr: float | None = None
    weight_decay: float = 0.01
    clip: float = 1.0

    def resolve(self, concept: Concept, world: World) -> Self:
        """Return the method with every ``None`` filled in."""
        nsfw = concept.kind == "nsfw"
        here: dict[str, Any] = {"params": "attn" if nsfw else "esd-x-strict"}
        if world == "photo":
            rate, steps = (6.4e-5, 400) if nsfw else (1.6e-5, 100)
            return fill(self, **here, images=1000, steps=steps, lr=rate)
        rate = 5e-5 if nsfw else 3e-4  # bench.emoji.calibrate
        return fill(self, **here, images=100, steps=100, lr=rate)

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Tune the model towards the anchor."""
        import torch

        full: Any = self.resolve(concept, model.world)
        objective = full.objective(model, concept, ctx, ctx.seed("ac"))
        params = list(model.parameters(full.params).values())
        for p in params:
            p.requires_grad_(True)
        optimizer = torch.optim.AdamW(params, lr=full.lr, weight_decay=full.weight_decay)
        for step in range(full.steps):
            loss = objective.loss(model)
            if not torch.isfinite(loss):
                raise PluginError(f"the loss is {loss.item()} at step {step}: lower lr ({full.lr})")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, full.clip)
            optimizer.step()
            ctx.progress("erase", step + 1, full.steps)
        for p in params:
            p.requires_grad_(False)
        return model
