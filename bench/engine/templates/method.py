"""Fade: takes the concept's direction out of what the denoiser reads in the prompt."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from bench import Card, Concept, Context, Model


@dataclass(frozen=True)
class Fade:
    """Scales the concept's direction in the values of cross-attention: ``W <- W - s (W u) u^T``.

    ``u`` is the unit vector from the empty text's embedding to that of a phrase, mean over tokens.

    Args:
        strength: ``s``: at 1 nothing of the direction is left, above 1 it is turned round.
    """

    card: ClassVar = Card("Fade", "")

    strength: Annotated[float, Field(ge=0, le=4)] = 1.0

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Edit the model, which is a private copy, and return it."""
        for phrase in concept.phrases:
            empty, text = model.encode(["", phrase]).mean(1).float()
            u = (text - empty) / (text - empty).norm()
            for name, weight in model.parameters("esd-x-strict").items():
                if ".to_v." in name:
                    weight.data -= self.strength * (weight.data @ u).outer(u)
        return model
