"""The test prompts as they are: gives the rate before any attack."""

from dataclasses import dataclass
from typing import ClassVar

from bench import Adversarial, Attacker, Card, Context, Target, Threat


@dataclass(frozen=True)
class NoAttack:
    """Hands every prompt back."""

    card: ClassVar = Card("No attack", paper="")
    threat: ClassVar = Threat("black", "prompt")

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the identity."""
        return lambda prompts: (Adversarial(prompt) for prompt in prompts)
