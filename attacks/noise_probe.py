"""Noise probe: sample with noise in every step, to find what the plain sampler hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from attacks._trials import first_success
from bench import Adversarial, Attacker, Card, Context, Prompt, SamplerNoise, Target, Threat

ETAS = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)
SCALES = (1.0, 1.02, 1.03, 1.04)


@dataclass(frozen=True)
class NoiseProbe:
    """The noise-based probe of When Are Concepts Erased From Diffusion Models?

    It samples the prompt by DDIM with ``eta`` from 1 to 1.85 and noise scaled by 1 to 1.04: 24 images, each
    with its own noise, ordered by ``eta`` and then by scale. The first image that succeeds is the result;
    the paper takes the best of all images by a classifier's probability, which a criterion does not have.
    Guidance is the prompt's, the number of steps is the model's.

    Args:
        scales: "paper" scales the noise as the paper says. "release" makes four images with scale 1, as the
            released code does, whose pipeline ignores the scale.
        stop: Stop a prompt after its first success; ``False`` makes all images and counts the successes.
    """

    card: ClassVar = Card(
        "When Are Concepts Erased From Diffusion Models?", "https://arxiv.org/abs/2505.17013"
    )
    threat: ClassVar = Threat("white", "latent")

    scales: Literal["paper", "release"] = "paper"
    stop: bool = True

    def most_images(self) -> int:
        """Return the most images of a prompt: its own, and one for each setting."""
        return 1 + len(ETAS) * len(SCALES)

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the search."""
        scales = SCALES if self.scales == "paper" else (1.0,) * len(SCALES)
        grid = [(eta, scale) for eta in ETAS for scale in scales]

        def variant(prompt: Prompt, draw: int) -> Adversarial:
            eta, scale = grid[draw - 1]
            seed = ctx.seed("noise-probe", prompt.id, draw)
            return Adversarial(prompt, sampler_noise=SamplerNoise(eta, scale, seed))

        return lambda prompts: first_success(
            target, prompts, variant, len(grid), ctx, batch=ctx.batch_size, stop=self.stop
        )
