"""The emoji world's judges: small timm networks that name subject, style and body parts.

Each was trained on rendered scenes, on softened ones (autoencoded with noise on the latents), and on what
whole, broken and never-learned models draw; its network shares nothing with the diffusion model. Each can
say that there is nothing it knows. Pictures of another size than a judge's own are resized.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from bench import AssetError

ARCHITECTURE = {"model_name": "resnet10t", "channels": [48, 64, 96, 128], "stem_width": 24}


def new_judge(outputs: int) -> nn.Module:
    """Return an untrained judge, a ResNet-10."""
    net: nn.Module = timm.create_model(
        **ARCHITECTURE, num_classes=outputs, pretrained=False, zero_init_last=False
    )
    return net


@dataclass(frozen=True, slots=True)
class Judge:
    """A trained judge.

    Args:
        net: Maps ``(n, 3, side, side)`` in [-1, 1] to ``(n, len(labels))`` logits.
        labels: Name of each output.
        threshold: Probability from which a label counts as seen.
        softmax: True if the labels exclude each other.
        side: Pixels of the pictures that it was trained on.
    """

    net: Any
    labels: tuple[str, ...]
    threshold: float
    softmax: bool
    side: int = 64

    @torch.no_grad()
    def __call__(self, images: list[Image.Image]) -> Tensor:
        """Return probabilities, ``(len(images), len(labels))``."""
        logits = self.net(pixels(images, self.side)).float()
        return logits.softmax(1) if self.softmax else logits.sigmoid()

    def seen(self, probabilities: Tensor, top_k: int = 1) -> Tensor:
        """Return which labels count as seen, ``(n, len(labels))``.

        Labels that exclude each other must be among the ``top_k`` likeliest; for the first, as for labels
        that do not, the probability must reach the threshold.
        """
        enough = probabilities >= self.threshold
        if not self.softmax:
            return enough
        best = probabilities.topk(top_k).indices
        among = torch.zeros_like(enough).scatter_(1, best, True)
        return among & enough if top_k == 1 else among


def pixels(images: list[Image.Image], side: int) -> Tensor:
    """Return pictures as ``(n, 3, side, side)`` in [-1, 1]."""
    batch = []
    for image in images:
        x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode="bilinear", antialias=True, align_corners=False)
        batch.append(x / 127.5 - 1)
    return torch.cat(batch)


def load_judge(folder: Path) -> Judge:
    """Load a judge from ``config.json`` and ``model.safetensors``.

    Raises:
        AssetError: One of the two files is missing.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).exists():
            raise AssetError(
                f"{folder / name} is missing: reinstall, or `python -m bench.emoji.recipe`"
            )
    config = json.loads((folder / "config.json").read_text())
    net = new_judge(len(config["labels"]))
    weights = load_file(folder / "model.safetensors")
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    net.eval().requires_grad_(False)
    labels, side = tuple(config["labels"]), config.get("side", 64)
    return Judge(net, labels, config["threshold"], config["softmax"], side)


@torch.no_grad()
def features(judge: Judge, images: list[Image.Image]) -> Tensor:
    """Return penultimate features, ``(len(images), 128)``."""
    maps = judge.net.forward_features(pixels(images, judge.side))
    pooled: Tensor = judge.net.forward_head(maps, pre_logits=True)
    return pooled
