"""Relearn: how few steps on how few pictures bring an erased concept back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from attacks._trials import charge_first, first_success, precise
from bench import (
    Adversarial,
    Attacker,
    Card,
    Context,
    Cost,
    Model,
    ParameterGroup,
    Prompt,
    Target,
    Threat,
    fit,
    sentences,
    trainable,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Relearn:
    """A few steps of fine-tuning on a handful of pictures of the concept. Ours.

    The original model draws the pictures, from the concept's words in plain sentences and from seeds of
    its own, never from the test prompts; nothing else is asked of it. The victim's denoiser is trained
    on them in float32, with the noise's mean squared error and AdamW, once for all prompts. Prompts that
    succeed as they are stay so; the others are drawn again by the tuned model. No paper prescribes the
    numbers: few steps and a low rate are meant to show how near the surface the concept is. On the emoji
    world ``lr`` is the smallest of 1e-5, 1e-4 and 3e-4 that undoes ESD on church-calibration.

    The set-up (pictures and tuning) is in the cost of the first prompt that is done.

    Args:
        images: Pictures of the concept, all of them in each step.
        steps: Optimiser steps.
        lr: Learning rate of AdamW.
        params: Weights that may change.
    """

    card: ClassVar = Card("Few-step relearning", "", version=2)
    threat: ClassVar = Threat("white", "weights")

    images: Annotated[int, Field(ge=1)] = 5
    steps: Annotated[int, Field(ge=1)] = 50
    lr: Annotated[float, Field(gt=0)] = 1e-5
    params: ParameterGroup = "full"

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Draw the pictures, tune a copy of the victim; return the attack."""
        start = time.perf_counter()
        texts = sentences(target.concept)
        prompts = [
            Prompt(str(i), texts[i % len(texts)], ctx.seed("relearn", "picture", i))
            for i in range(self.images)
        ]
        pictures = target.original.generate(prompts)
        tuned = precise(target.victim)
        losses = self.tune(tuned, tuned.encode_images(pictures), [p.text for p in prompts], ctx)
        model = target.victim.copy()
        fresh = tuned.parameters(self.params)
        for name, parameter in model.parameters(self.params).items():
            parameter.data.copy_(fresh[name])
        setup = Cost(
            self.images,
            self.steps * self.images,
            self.steps * self.images,
            text_forward=self.images,
            seconds=time.perf_counter() - start,
        )
        tens = [losses[i : i + 10] for i in range(0, len(losses), 10)]
        trace = {"losses": [round(fmean(ten), 5) for ten in tens]}

        def variant(prompt: Prompt, _: int) -> Adversarial:
            return Adversarial(prompt, model=model, trace=trace)

        return lambda prompts: charge_first(
            first_success(target, prompts, variant, 1, ctx, batch=ctx.batch_size), setup
        )

    def tune(
        self, model: Model, latents: Tensor, texts: Sequence[str], ctx: Context
    ) -> list[float]:
        """Train a model in place on latents and their texts; return the loss of each step."""
        import torch

        cond = model.encode(texts)
        rng = torch.Generator().manual_seed(ctx.seed("relearn", "train"))

        def loss() -> Tensor:
            t = torch.randint(1000, (len(latents),), generator=rng).to(model.device)
            noise = torch.randn(latents.shape, generator=rng).to(model.device)
            predicted = model.predict_noise(model.add_noise(latents, noise, t), t, cond)
            return (predicted - noise).square().mean()

        with trainable(model.parameters(self.params).values()) as params:
            optimizer = torch.optim.AdamW(params, lr=self.lr)
            return fit(loss, optimizer, self.steps, ctx, stage="tune")
