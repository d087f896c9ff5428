"""CLIP score: how well an image fits its prompt, by name of the variant.

Published numbers differ by model, by scale and by what becomes of long captions; a variant fixes them.
Captions are truncated at 77 tokens here, where scripts that leave it out fail on long ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bench import Card, Context, Sample, Score
from evaluators._each import each, finite

_MODELS = {
    "b32-logits/100": "clip-vit-b32",
    "b32-x100": "clip-vit-b32",
    "l14-x100": "clip-vit-l14",
}


@dataclass(frozen=True)
class ClipScore:
    """Similarity of an image and its prompt; higher is better.

    Images are prepared by the processor that works with Pillow, as in the scripts that the variants are of.

    Args:
        variant: "b32-logits/100": CLIP ViT-B/32, logits divided by 100, of AdvUnlearn
            (arXiv 2405.15234) and the UnlearnDiffAtk leaderboard. "b32-x100": the logits, of MACE
            (arXiv 2403.06135) and UCE (arXiv 2308.14761). "l14-x100": 100 times the cosine, ViT-L/14, of
            torchmetrics, which moreover raises a negative mean to 0.
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

    def prepare(self, ctx: Context) -> Callable[[Sequence[Sample]], Sequence[Score]]:
        """Load the CLIP model."""
        import torch
        from transformers import CLIPModel

        from bench.models import load_tokens, load_vision

        (asset,) = self.assets()
        folder = ctx.asset(asset)
        clip, pixels = load_vision(CLIPModel, folder, ctx.device, asset=asset)
        tokens = load_tokens(folder, ctx.device)

        def verdicts(images: list[Any], samples: Sequence[Sample]) -> list[Score]:
            texts = tokens([s.prompt.text for s in samples])
            with torch.no_grad():
                found = clip(pixel_values=pixels(images), **texts)
            cosine = (found.image_embeds * found.text_embeds).sum(1)
            logits = cosine * clip.logit_scale.exp()
            values = {
                "b32-logits/100": logits / 100,
                "b32-x100": logits,
                "l14-x100": cosine * 100,
            }[self.variant]
            return [Score(value) for value in finite(values).tolist()]

        return lambda samples: each(samples, verdicts, ctx.batch_size)
