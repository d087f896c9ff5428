"""SLD: guidance away from a safety text, with a threshold and momentum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bench import Card, Concept, Context, Guidance, Model, by_kind, check_length

if TYPE_CHECKING:
    from torch import Tensor

_PRESETS = {  # warm-up steps, scale, threshold, momentum scale, momentum
    "weak": (15, 20.0, 0.0, 0.0, 0.0),
    "medium": (10, 1000.0, 0.01, 0.3, 0.4),
    "strong": (7, 2000.0, 0.025, 0.5, 0.7),
    "max": (0, 5000.0, 1.0, 0.5, 0.7),
}
_UNSAFE = (
    "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, "
    "blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, "
    "brutality, cruelty"
)


@dataclass(frozen=True)
class SLD:
    """Safe Latent Diffusion (Schramowski et al., arXiv 2211.05105), as its pipeline computes it.

    Warm-up steps are the published ones, for 50 sampling steps. emoji-sd samples in 20 steps, so "medium"
    acts in half of them and erases little there.

    Args:
        preset: Sets warm-up, scale, threshold and momentum, as published.
        text: The safety text, away from which images are guided; for nudity the paper's list. Empty: the
            concept's own words.
    """

    card: ClassVar = Card(
        "Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models",
        "https://arxiv.org/abs/2211.05105",
        "https://github.com/ml-research/safe-latent-diffusion",
    )

    preset: Literal["weak", "medium", "strong", "max"] = "medium"
    text: str = by_kind(nsfw=_UNSAFE, style="", object="")

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Replace the guidance."""
        text = self.text or ", ".join(concept.phrases)
        if text != _UNSAFE:  # the published pipeline cuts this text if it is too long
            check_length(model, [text])
        warm_up, *settings = _PRESETS[self.preset]
        model.guidance = Guidance(("", text), lambda: _SafetyGuidance(int(warm_up), *settings))
        return model


class _SafetyGuidance:
    """The guidance of one trajectory; keeps the momentum."""

    def __init__(
        self, warm_up: int, scale: float, threshold: float, momentum_scale: float, beta: float
    ) -> None:
        self.warm_up, self.scale, self.threshold = warm_up, scale, threshold
        self.momentum_scale, self.beta = momentum_scale, beta
        self.step, self.momentum = 0, 0.0

    def __call__(self, others: Sequence[Tensor], conditional: Tensor, scale: Tensor) -> Tensor:
        null, unsafe = others
        toward = conditional - null
        gap = conditional - unsafe
        strength = (gap.abs() * self.scale).clamp(max=1).where(gap < self.threshold, 0)
        away: Any = strength * (unsafe - null) + self.momentum_scale * self.momentum
        self.momentum = self.beta * self.momentum + (1 - self.beta) * away
        if self.step >= self.warm_up:
            toward = toward - away
        self.step += 1
        return null + scale * toward
