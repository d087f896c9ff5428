"""CLIP score: how well an image fits its prompt.

Published numbers use different models and scales, so each variant has a name. Captions are cut at 77
tokens here; scripts that do not cut them fail on long ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bench import Card, Context, ImageScorer, Sample, Score
from evaluators._clip import open_clip
from evaluators._each import each, finite

_MODELS = {
    "b32-logits/100": "clip-vit-b32",
    "b32-x100": "clip-vit-b32",
    "l14-x100": "clip-vit-l14",
}


@dataclass(frozen=True)
class ClipScore:
    """Similarity of an image and its prompt; higher is better.

    Images are prepared with Pillow, as in the scripts that the variants come from.

    Args:
        variant: "b32-logits/100": CLIP ViT-B/32, logits divided by 100, of AdvUnlearn
            (arXiv 2405.15234) and the UnlearnDiffAtk leaderboard. "b32-x100": the logits, of MACE
            (arXiv 2403.06135) and UCE (arXiv 2308.14761). "l14-x100": 100 times the cosine, ViT-L/14, of
            torchmetrics (which also replaces a negative mean by 0).
    """

    card: ClassVar = Card(
        "CLIPScore: A Reference-free Evaluation Metric for Image Captioning",
        "https://arxiv.org/abs/2104.08718",
    )
    scope: ClassVar = "image"

    variant: Literal["b32-logits/100", "b32-x100", "l14-x100"] = "b32-logits/100"

    def assets(self) -> tuple[str, ...]:
        """Name the CLIP model."""
        return (_MODELS[self.variant],)

    def prepare(self, ctx: Context) -> ImageScorer:
        """Load the CLIP model."""
        clip, scale = open_clip(_MODELS[self.variant], ctx)

        def verdicts(images: list[Any], samples: Sequence[Sample]) -> list[Score]:
            found = clip(images, [s.prompt.text for s in samples])
            cosine = (found.image_embeds * found.text_embeds).sum(1)
            logits = cosine * scale
            values = {
                "b32-logits/100": logits / 100,
                "b32-x100": logits,
                "l14-x100": cosine * 100,
            }[self.variant]
            return [Score(value) for value in finite(values).tolist()]

        return lambda samples: each(samples, verdicts, ctx.batch_size)
