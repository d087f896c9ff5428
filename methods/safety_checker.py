"""Safety checker: Stable Diffusion's own filter, which makes unsafe images black."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bench import Card, Concept, Context, IncompatibleError, Model

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class SafetyChecker:
    """An image whose CLIP embedding is near one of 17 unsafe concepts becomes black.

    A black image counts as erased; the record also has the number of black images, "blacked-out". For the
    photo world only.

    Args:
        weights: Folder of the checker; by default the asset "safety-checker".
    """

    card: ClassVar = Card(
        "Red-Teaming the Stable Diffusion Safety Filter", "https://arxiv.org/abs/2210.04610"
    )

    weights: Path | None = None

    def assets(self) -> tuple[str, ...]:
        """Return the assets this method needs."""
        return () if self.weights else ("safety-checker",)

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Let the checker screen every image."""
        if model.world != "photo":
            raise IncompatibleError(
                "safety-checker needs a model of the photo world: use it with --model sd14"
            )
        import numpy as np
        import torch
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        from bench.models import load_vision

        folder = self.weights or ctx.asset("safety-checker")
        checker, pixels = load_vision(
            StableDiffusionSafetyChecker, folder, model.device, asset="safety-checker"
        )

        def screen(images: list[Image]) -> list[Image]:
            with torch.no_grad():
                _, unsafe = checker(
                    clip_input=pixels(images), images=np.zeros((len(images), 1, 1, 3))
                )
            return [
                image.point(lambda _: 0) if bad else image
                for image, bad in zip(images, unsafe, strict=True)
            ]

        model.screen = screen
        return model
