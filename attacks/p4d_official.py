"""P4D as its authors publish it: sixteen free tokens, or one before every three of the prompt's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from attacks._adam import Adam
from attacks._texts import check_room
from attacks._token_search import Insertion, Slot
from attacks.p4d import NearestSearch
from bench import (
    Adversarial,
    Attacker,
    Card,
    Concept,
    Context,
    Cost,
    Model,
    Prompt,
    Target,
    Threat,
    World,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Similarity = Callable[[Sequence[Any]], Tensor]
"""Unit features of images, ``(images, width)``."""


@dataclass(frozen=True)
class P4DOfficial:
    """Prompting4Debugging (Chin et al.), the authors' algorithm, batched over prompts.

    At every step a timestep is drawn, and the victim with the free tokens is asked for the noise that the
    original predicts for the prompt. Every ``check`` steps the nearest tokens are decoded and drawn, and
    the text whose image is most like the original's image of the prompt is kept; that text is the result.

    Deviations: the authors draw three images of the final text and count a success of any (the harness
    draws one, with the prompt's seed), take the most unsafe of three images as the target (here, the
    prompt's own), and attack only prompts on which the erased model is safe (here, a prompt that succeeds
    as it is counts as its own adversarial). Checks use the model's own sampler and the prompt's seed.
    Prompts that do not fit the context with their free tokens (variant "k") are skipped, not encoded in
    pieces.

    Args:
        variant: "n": ``tokens`` free tokens replace the prompt. "k": one free token stands before every
            three tokens of the prompt, which stays.
        tokens: Free tokens of variant "n".
        iterations: Optimiser steps; fewer on the emoji world, for speed.
        check: Steps between two images.
        lr: AdamW's learning rate.
        weight_decay: Decoupled, on the embeddings.
        pixels: Range in which the target image enters the autoencoder: "unit" is the published code's
            [0, 1], "signed" the [-1, 1] that the autoencoder expects.
        padding: "zero": token 0 behind the end token, as published; "end": the end token again.
        similarity: Whose features say how alike two images are: "clip-h14" (published), or
            "emoji-subject", the emoji world's judge of subjects.
        loss: Distance between the two models' noise.
        long_prompts: "skip" a prompt without room for its free tokens, or "cut" its end.
    """

    card: ClassVar = Card(
        "Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic Prompts",
        "https://arxiv.org/abs/2309.06135",
        "https://github.com/joycenerd/P4D",
        version=2,
    )
    threat: ClassVar = Threat("white", "prompt")

    variant: Literal["n", "k"] = "n"
    tokens: Annotated[int, Field(ge=1)] = 16
    iterations: Annotated[int, Field(ge=1)] = 3000
    check: Annotated[int, Field(ge=1)] = 50
    lr: Annotated[float, Field(gt=0)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    pixels: Literal["unit", "signed"] = "unit"
    padding: Literal["zero", "end"] = "zero"
    similarity: Literal["clip-h14", "emoji-subject"] = "clip-h14"
    loss: Literal["l2", "l1"] = "l2"
    long_prompts: Literal["skip", "cut"] = "skip"

    def __post_init__(self) -> None:
        if self.iterations < self.check:
            raise ValueError(
                f"check={self.check}: expected at most iterations={self.iterations}, the steps in all"
            )

    @property
    def insertion(self) -> Insertion:
        """Where free tokens stand."""
        return "replace" if self.variant == "n" else "per-k-words"

    @property
    def longest(self) -> None:
        """Every prompt is attacked that fits the context with its free tokens."""

    @property
    def steps(self) -> int:
        """Optimiser steps between two images."""
        return self.check

    def schedule(self) -> list[int]:
        """Return a placeholder for each round; timesteps are drawn."""
        return [-1] * (self.iterations // self.check)

    def free(self, ids: Sequence[int]) -> int:
        """Return 16, or one for every three tokens and one more."""
        return self.tokens if self.variant == "n" else len(ids) // 3 + 1

    def picture(self, original: Model, prompts: Sequence[Prompt]) -> Sequence[Image]:
        """Return the original's images of the prompts."""
        return original.generate(prompts)

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse a text that is longer than the text encoder's context."""
        if self.variant == "n":
            check_room("tokens", self.tokens, context)

    def assets(self) -> tuple[str, ...]:
        """Return the image encoder's name."""
        return ("clip-vit-h14",) if self.similarity == "clip-h14" else ()

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the search."""
        features = _emoji_features if self.similarity == "emoji-subject" else _clip_features(ctx)
        return OfficialSearch(self, target, ctx, features).run


class OfficialSearch(NearestSearch[P4DOfficial]):
    """Rounds of ``check`` steps; nothing stops early, and the most similar text is the result."""

    def __init__(
        self, attack: P4DOfficial, target: Target, ctx: Context, features: Similarity
    ) -> None:
        super().__init__(attack, target, ctx)
        self.features = features
        self.padding = 0 if attack.padding == "zero" else None

    def start(self, prompt: Prompt, tokens: int) -> Tensor:
        """Return the embeddings of random tokens, drawn from the prompt's seed."""
        rng = torch.Generator().manual_seed(prompt.seed)
        ids = torch.randint(len(self.table), (tokens,), generator=rng)
        return self.table[ids.to(self.table.device)]

    def adam(self, variable: Tensor) -> Adam:
        """Return AdamW."""
        return Adam(variable, self.attack.lr, self.attack.weight_decay, decoupled=True)

    def draw_times(self, slots: Sequence[Slot]) -> list[int]:
        """Draw a timestep for every prompt."""
        return [int(torch.randint(1000, (1,), generator=s.rng)) for s in slots]

    def restart(self, slot: Slot) -> None:
        """Seed the prompt's stream once; it runs on over all steps."""
        if slot.round == 0:
            slot.rng = torch.Generator().manual_seed(slot.prompt.seed)

    def aims(self, pictures: Sequence[Image]) -> Sequence[Tensor]:
        """Return features of the original's images."""
        return list(self.features(pictures))

    def latents(self, prompts: Sequence[Prompt], pictures: Sequence[Image]) -> Tensor:
        """Return latents drawn from the posterior of the original's images."""
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

    def evaluate(self, slots: list[Slot]) -> Iterator[Adversarial]:
        """Decode, draw, compare with the original's image; at the end yield the best text."""
        images = self.model.generate(self.trials(slots))
        for slot, image, feature in zip(slots, images, self.features(images), strict=True):
            slot.round += 1
            likeness = -1.0 if image.info.get("unscored") else float(feature @ slot.aim)
            if not slot.best or likeness > slot.best["similarity"]:
                slot.best = {"similarity": likeness, "check": slot.round}
                slot.best |= {"text": slot.text, "ids": slot.found}
        done = [slot for slot in slots if slot.round == len(self.times)]
        final = [replace(slot.prompt, text=slot.best["text"]) for slot in done]
        hits = self._judge(final) if final else []
        for slot, prompt, success in zip(done, final, hits, strict=True):
            slot.found, slot.text = slot.best["ids"], slot.best["text"]
            trace = self._trace(slot, bool(success)) | {
                "similarity": round(slot.best["similarity"], 4),
                "check": slot.best["check"],
            }
            del trace["token_success"]  # ids are not drawn apart from their string
            yield Adversarial(prompt, cost=slot.cost + Cost(images=1), trace=trace)


def _emoji_features(images: Sequence[Any]) -> Tensor:
    """Return unit features of the emoji world's subject judge."""
    from bench.emoji import JUDGES
    from bench.emoji.judges import features, load_judge

    return torch.nn.functional.normalize(
        features(load_judge(JUDGES / "subject"), list(images)), dim=-1
    )


def _clip_features(ctx: Context) -> Similarity:
    """Return CLIP ViT-H/14's unit image features."""
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
