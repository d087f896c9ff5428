"""Negative prompt: guide away from the concept while sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bench import Card, Concept, Context, Guidance, Model, check_length


@dataclass(frozen=True)
class NegativePrompt:
    """The concept's text replaces the empty text in classifier-free guidance.

    ``eps = eps(concept) + s (eps(prompt) - eps(concept))``. No weight changes, so an attack that uses the
    denoiser's predictions without guidance does not see it.
    """

    card: ClassVar = Card("Negative prompt", "https://arxiv.org/abs/2207.12598")

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Replace the unconditional text."""
        text = ", ".join(concept.phrases)
        check_length(model, [text])
        model.guidance = Guidance((text,))
        return model
