"""CLIP for judges: pictures and texts in, CLIP's output out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bench import Context

if TYPE_CHECKING:
    from torch import Tensor

Clip = Callable[[Sequence[Any], Sequence[str]], Any]
"""Maps PIL pictures and texts to the output of transformers' ``CLIPModel``."""


def open_clip(asset: str, ctx: Context) -> tuple[Clip, Tensor]:
    """Return CLIP as a function, and the factor between its cosines and its logits.

    Raises:
        AssetError: The asset is missing or is not a CLIP model.
    """
    import torch
    from transformers import CLIPModel

    from bench.models import load_tokens, load_vision

    folder = ctx.asset(asset)
    net, pixels = load_vision(CLIPModel, folder, ctx.device, asset=asset)
    tokens = load_tokens(folder, ctx.device)

    @torch.no_grad()
    def clip(images: Sequence[Any], texts: Sequence[str]) -> Any:
        return net(pixel_values=pixels(images), **tokens(texts))

    return clip, net.logit_scale.exp()
