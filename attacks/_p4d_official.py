"""The search of P4D's authors: the string whose image is most like the original's wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attacks._nearest import NearestSearch
from attacks._slot import Slot
from attacks._trials import judged
from attacks.p4d_official import P4DOfficial
from bench import Adversarial, Context, Cost, Prompt, Target

if TYPE_CHECKING:
    from PIL.Image import Image

Similarity = Callable[[Sequence[Any]], Tensor]
"""Maps PIL images to features of unit length, ``(images, width)``."""


class OfficialSearch(NearestSearch[P4DOfficial]):
    """The search with rounds of ``check`` steps that never stops early; the most similar string wins."""

    def __init__(
        self, attack: P4DOfficial, target: Target, ctx: Context, features: Similarity
    ) -> None:
        super().__init__(attack, target, ctx)
        self.features, self.decoupled = features, True
        self.padding = 0 if attack.padding == "zero" else None

    def start(self, prompt: Prompt, tokens: int) -> Tensor:
        """Return the embeddings of random tokens, drawn from the prompt's seed."""
        rng = torch.Generator().manual_seed(prompt.seed)
        ids = torch.randint(len(self.table), (tokens,), generator=rng)
        return self.table[ids.to(self.table.device)]

    def draw_times(self, slots: Sequence[Slot]) -> list[int]:
        """Draw a timestep for each slot."""
        return [int(torch.randint(1000, (1,), generator=s.rng)) for s in slots]

    def restart(self, slot: Slot) -> None:
        """Seed the slot's random stream once, for all rounds."""
        if slot.round == 0:
            slot.rng = torch.Generator().manual_seed(slot.prompt.seed)

    def own(self, prompts: Sequence[Prompt], pictures: Sequence[Image]) -> list[dict[str, Tensor]]:
        """Return the original model's encoding of each prompt, and features of its image."""
        kept = zip(super().own(prompts, pictures), self.features(pictures), strict=True)
        return [own | {"features": features} for own, features in kept]

    def latents(self, prompts: Sequence[Prompt], pictures: Sequence[Image]) -> Tensor:
        """Return latents drawn from the autoencoder's posterior of the original's images."""
        vae = self.model.pipe.vae
        pixels = torch.from_numpy(np.stack([np.array(i.convert("RGB")) for i in pictures]))
        x = pixels.permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 255
        x = x if self.attack.pixels == "unit" else 2 * x - 1
        with torch.no_grad():
            posterior = vae.encode(x).latent_dist
        shape = posterior.mean.shape[1:]
        seeds = [self.ctx.seed("posterior", p.id) for p in prompts]
        draws = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        z = posterior.mean + posterior.std * torch.stack(draws).to(posterior.mean)
        latents: Tensor = z.float() * vae.config.scaling_factor
        return latents

    def evaluate(self, slots: list[Slot]) -> None:
        """End a round: make each string's image and keep the best string; judge it after the last round."""
        self.read_all(slots)
        images = self.model.generate([slot.trial for slot in slots])
        for slot, image, features in zip(slots, images, self.features(images), strict=True):
            slot.round += 1
            black = image.info.get("unscored")
            similarity = -1.0 if black else float(features @ slot.own["features"].cpu())
            if not slot.best or similarity > slot.best["similarity"]:
                slot.best = {"similarity": similarity, "check": slot.round}
                slot.best |= {"text": slot.text, "ids": slot.found}
        last = [slot for slot in slots if slot.round == len(self.times)]
        for slot in last:
            slot.found, slot.text, slot.done = slot.best["ids"], slot.best["text"], True
            slot.cost += Cost(images=1)
        if last:
            hits = judged(self.target, [Adversarial(slot.trial) for slot in last])
            for slot, hit in zip(last, hits, strict=True):
                slot.success = hit

    def trace(self, slot: Slot) -> dict[str, Any]:
        """Return what the record shows of a search; images of the ids themselves are not made."""
        best = {"similarity": round(slot.best["similarity"], 4), "check": slot.best["check"]}
        return super().trace(slot) | best


def emoji_features(images: Sequence[Any]) -> Tensor:
    """Return unit-length features of the emoji world's subject judge."""
    from bench.emoji import JUDGES
    from bench.emoji.judges import features, load_judge

    return torch.nn.functional.normalize(
        features(load_judge(JUDGES / "subject"), list(images)), dim=-1
    )


def clip_features(ctx: Context) -> Similarity:
    """Return the function that maps images to CLIP ViT-H/14's unit-length features."""
    from transformers import CLIPVisionModelWithProjection

    from bench.models import load_vision

    folder = ctx.asset("clip-vit-h14")
    net, pixels = load_vision(
        CLIPVisionModelWithProjection, folder, ctx.device, asset="clip-vit-h14"
    )

    def features(images: Sequence[Any]) -> Tensor:
        with torch.no_grad():
            embeds: Tensor = net(pixels(images)).image_embeds
        return torch.nn.functional.normalize(embeds.float().cpu(), dim=-1)

    return features
