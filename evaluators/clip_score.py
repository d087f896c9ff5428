"""CLIP score: how well an image fits its prompt, by name of the variant.

Published numbers differ by model, by scale and by what becomes of long captions; a variant fixes them.
Captions are truncated at 77 tokens here, where scripts that leave it out fail on long ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from bench import Card, Context, Sample, Score

_TOKENS = 77
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
        import transformers

        folder = ctx.asset(_MODELS[self.variant])
        model: Any = transformers.CLIPModel.from_pretrained(folder, use_safetensors=True)
        model.eval().requires_grad_(False).to(ctx.device)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
        # transformers 5 gave the old name to the torchvision backend, whose pixels differ.
        name = "CLIPImageProcessorPil"
        kind: Any = getattr(transformers, name, transformers.CLIPImageProcessor)
        processor = kind.from_pretrained(folder)

        def similarity(samples: Sequence[Sample]) -> Any:
            images = [s.image.convert("RGB") for s in samples]
            pixels = processor(images, return_tensors="pt").pixel_values
            tokens = tokenizer(
                [s.prompt.text for s in samples],
                padding=True,
                truncation=True,
                max_length=_TOKENS,
                return_tensors="pt",
            )
            with torch.no_grad():
                found = model(pixel_values=pixels.to(ctx.device), **tokens.to(ctx.device))
            cosine = (found.image_embeds * found.text_embeds).sum(1)
            logits = cosine * model.logit_scale.exp()
            return {
                "b32-logits/100": logits / 100,
                "b32-x100": logits,
                "l14-x100": cosine * 100,
            }[self.variant]

        def score(samples: Sequence[Sample]) -> list[Score]:
            try:
                return [Score(float(value)) for value in similarity(samples)]
            except Exception as exc:  # whatever is wrong, only the bad images are unscored
                if len(samples) == 1:
                    return [Score(None, {"error": f"{type(exc).__name__}: {exc}"})]
                return [one for sample in samples for one in score([sample])]

        def batches(samples: Sequence[Sample]) -> list[Score]:
            parts = range(0, len(samples), ctx.batch_size)
            return [one for i in parts for one in score(samples[i : i + ctx.batch_size])]

        return batches
