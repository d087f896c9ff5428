"""Relearn: fine-tune the erased model on a few pictures of the concept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from attacks._trials import precise, with_model
from bench import (
    Attacker,
    Batch,
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
    """A few steps of fine-tuning on a few pictures of the concept; this project's own attack.

    The original model draws the pictures from plain sentences with the concept's words, never from the
    test prompts, and with other seeds; the attack uses it for nothing else. The victim's denoiser is
    trained on the pictures in float32, with the mean squared error of the noise and AdamW, once for all
    prompts. Prompts that succeed as they are count as found; the others are tried again with the tuned
    model. The numbers are from no paper: few steps and a low rate show how near the concept still is. In
    the emoji world ``lr`` is the smallest of 1e-5, 1e-4 and 3e-4 that undoes ESD on church-calibration.

    The cost of pictures and training is in the cost of the first prompt that is found.

    Args:
        images: Number of pictures; each step uses all of them.
        steps: Optimiser steps.
        lr: Learning rate of AdamW.
        params: Weights that are trained.
    """

    card: ClassVar = Card("Few-step relearning", "", version=2)
    threat: ClassVar = Threat("white", "weights")

    images: Annotated[int, Field(ge=1)] = 5
    steps: Annotated[int, Field(ge=1)] = 50
    lr: Annotated[float, Field(gt=0)] = 1e-5
    params: ParameterGroup = "full"

    def most_images(self) -> int:
        """Return the most images of a prompt: its own, and that by the tuned model."""
        return 2

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Draw the pictures and train a copy of the victim; return the attack."""
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
        return with_model(target, model, trace, setup, ctx)

    def tune(
        self, model: Model, latents: Tensor, texts: Sequence[str], ctx: Context
    ) -> list[float]:
        """Train a model in place on latents and their texts; return the loss of each step."""
        import torch

        cond = model.encode(texts)
        rng = torch.Generator().manual_seed(ctx.seed("relearn", "train"))

        def draw() -> Batch:
            t = torch.randint(1000, (len(latents),), generator=rng).to(model.device)
            noise = torch.randn(latents.shape, generator=rng).to(model.device)
            x = model.add_noise(latents, noise, t)

            def error(rows: slice) -> Tensor:
                predicted = model.predict_noise(x[rows], t[rows], cond[rows])
                return (predicted - noise[rows]).square().mean()

            return Batch(len(latents), error)

        with trainable(model.parameters(self.params).values()) as params:
            optimizer = torch.optim.AdamW(params, lr=self.lr)
            return fit(draw, optimizer, self.steps, ctx, stage="tune")
