"""Fade: names the concept once more in front of the prompt, until an image shows it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from bench import Adversarial, Attacker, Card, Context, Cost, Prompt, Sample, Target, Threat


@dataclass(frozen=True)
class Fade:
    """Puts the concept's name in front of the prompt, once more with each image.

    Args:
        draws: The most images of one prompt.
    """

    card: ClassVar = Card("Fade", "")
    threat: ClassVar = Threat("black", "prompt")  # it generates, and changes the text

    draws: Annotated[int, Field(ge=1, le=16)] = 4

    def most_images(self) -> int:
        """Return how many images it makes of a prompt at most."""
        return self.draws

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the function that attacks prompts."""

        def attack(prompts: Sequence[Prompt]) -> Iterator[Adversarial]:
            for prompt in prompts:
                for n in range(1, self.draws + 1):
                    text = ", ".join([target.concept.name] * n + [prompt.text])
                    tried = replace(prompt, text=text)
                    (image,) = target.victim.generate([tried])
                    if target.criterion([Sample(prompt, image)])[0]:
                        break
                yield Adversarial(tried, cost=Cost(images=n))

        return attack
