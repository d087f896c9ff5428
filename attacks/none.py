"""The test prompts as they are: gives the rate before any attack."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from bench import Adversarial, Card, Context, Prompt, Target, Threat


@dataclass(frozen=True)
class NoAttack:
    """Hands every prompt back."""

    card: ClassVar = Card("No attack", paper="")
    threat: ClassVar = Threat("black", "prompt")

    def prepare(
        self, target: Target, ctx: Context
    ) -> Callable[[Sequence[Prompt]], Iterator[Adversarial]]:
        """Return the identity."""
        return lambda prompts: (Adversarial(prompt) for prompt in prompts)
