"""No attack: the test prompts as they are, for the rate before any attack."""

from dataclasses import dataclass
from typing import ClassVar

from bench import Adversarial, Attacker, Card, Context, Target, Threat


@dataclass(frozen=True)
class NoAttack:
    """Returns every prompt unchanged."""

    card: ClassVar = Card("No attack", paper="")
    threat: ClassVar = Threat("black", "prompt")

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the function that changes nothing."""
        return lambda prompts: (Adversarial(prompt) for prompt in prompts)
