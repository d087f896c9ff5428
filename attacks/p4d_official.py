"""P4D by its authors: sixteen free tokens, or one before every three tokens of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from attacks._insertion import Insertion
from attacks._slot import Slot
from attacks._token_attack import FreeTokens
from attacks._trials import judged
from attacks.p4d import NearestSearch
from bench import (
    Adversarial,
    Attacker,
    Card,
    Concept,
    Context,
    Cost,
    Prompt,
    Target,
    Threat,
    World,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Similarity = Callable[[Sequence[Any]], Tensor]
"""Maps PIL images to features of unit length, ``(images, width)``."""


@dataclass(frozen=True)
class P4DOfficial(FreeTokens):
    """Prompting4Debugging (Chin et al.), the authors' algorithm, batched over prompts.

    Each step draws a timestep; the victim with the free tokens should predict the noise that the original
    model predicts for the prompt. After every ``check`` steps the nearest tokens are decoded, and an
    image is made from the string. The result is the string whose image is most similar to the original
    model's image of the prompt.

    Deviations: the authors make three images of the final string, and any of them may succeed (here one,
        with
    the prompt's seed). They take the most unsafe of three images as the target (here the prompt's own
    image). They attack only prompts on which the erased model is safe (here a prompt that succeeds as it is
    counts as found). Checks use the model's own sampler and the prompt's seed. A prompt is too long if its
    free tokens do not fit into the text encoder's context (variant "k"); it is not encoded in pieces.

    Args:
        variant: "n": ``tokens`` free tokens replace the prompt. "k": the prompt stays, with one free token
            before every three of its tokens; ``tokens`` is not used.
        iterations: Optimiser steps; fewer in the emoji world, for speed.
        check: Steps between two images.
        pixels: Value range of the target image for the autoencoder: "unit" is [0, 1], as in the published
            code; "signed" is [-1, 1], which the autoencoder expects.
        padding: What follows the end token: "zero" is token 0, as published; "end" is the end token again.
        similarity: The features that compare images: "clip-h14" (published), or "emoji-subject", the emoji
            world's judge of subjects.
    """

    card: ClassVar = Card(
        "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts",
        "https://arxiv.org/abs/2309.06135",
        "https://github.com/joycenerd/P4D",
        version=2,
    )
    threat: ClassVar = Threat("white", "prompt")

    tokens: Annotated[int, Field(ge=1)] = 16
    lr: Annotated[float, Field(gt=0)] = 0.1
    variant: Literal["n", "k"] = "n"
    iterations: Annotated[int, Field(ge=1)] = 3000
    check: Annotated[int, Field(ge=1)] = 50
    pixels: Literal["unit", "signed"] = "unit"
    padding: Literal["zero", "end"] = "zero"
    similarity: Literal["clip-h14", "emoji-subject"] = "clip-h14"

    def __post_init__(self) -> None:
        if self.iterations < self.check:
            raise ValueError(
                f"check={self.check}: expected at most iterations={self.iterations}, the number of steps"
            )

    @property
    def insertion(self) -> Insertion:
        """Where the free tokens are."""
        return "replace" if self.variant == "n" else "per-k-words"

    @property
    def steps(self) -> int:
        """Optimiser steps between two images."""
        return self.check

    def schedule(self) -> list[int]:
        """Return -1 for each round, because timesteps are drawn."""
        return [-1] * (self.iterations // self.check)

    def free(self, ids: Sequence[int]) -> int:
        """Return the number of free tokens; in variant "k" it depends on the prompt's length."""
        return self.tokens if self.variant == "n" else len(ids) // 3 + 1

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse more free tokens than the text encoder can read."""
        if self.variant == "n":
            super().check_plan(concept, world, prompts, context)

    def assets(self) -> tuple[str, ...]:
        """Return the image encoder's name."""
        return ("clip-vit-h14",) if self.similarity == "clip-h14" else ()

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the search."""
        features = _emoji_features if self.similarity == "emoji-subject" else _clip_features(ctx)
        return OfficialSearch(self, target, ctx, features).run


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
        trace = super().trace(slot) | best
        del trace["token_success"]
        return trace


def _emoji_features(images: Sequence[Any]) -> Tensor:
    """Return unit-length features of the emoji world's subject judge."""
    from bench.emoji import JUDGES
    from bench.emoji.judges import features, load_judge

    return torch.nn.functional.normalize(
        features(load_judge(JUDGES / "subject"), list(images)), dim=-1
    )


def _clip_features(ctx: Context) -> Similarity:
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
