"""The parameters of attacks that search for free tokens: UnlearnDiffAtk and P4D."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from attacks._texts import check_room
from bench import Concept, Model, Prompt, World, by_kind, later

if TYPE_CHECKING:
    from PIL.Image import Image

    from attacks._insertion import Insertion

PRESETS = {"pruning": range(10, 1000, 100), "official": range(10, 1000, 20)}
"""Attacked timesteps: the pruning paper's ten, UnlearnDiffAtk's fifty."""
_OWN = BeforeValidator(lambda value: None if value == "own" else value)


@dataclass(frozen=True)
class FreeTokens(metaclass=ABCMeta):
    """Parameters of every attack that searches for free tokens.

    Args:
        tokens: Number of free tokens.
        lr: Learning rate of Adam, or of AdamW for ``p4d-official``.
        weight_decay: Weight decay: a term of Adam's gradient, or decoupled for ``p4d-official``.
        loss: Distance between the predicted noise and the wanted noise.
        long_prompts: What happens to a prompt that is too long: "skip" it, as UnlearnDiffAtk does (it
            counts as not attacked), or "cut" its end.
    """

    tokens: Annotated[int, Field(ge=1)] = by_kind(nsfw=5, style=3, object=3)
    lr: Annotated[float, Field(gt=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    loss: Literal["l2", "l1"] = "l2"
    long_prompts: Literal["skip", "cut"] = "skip"

    longest: ClassVar[int | None] = None  # tokens of the longest prompt, with start and end

    @property
    @abstractmethod
    def insertion(self) -> Insertion:
        """Where free tokens are."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimiser steps per round."""

    @abstractmethod
    def schedule(self) -> list[int]:
        """Return the timestep of each round."""

    def free(self, ids: Sequence[int]) -> int:
        """Return how many free tokens a prompt with these ids gets."""
        return self.tokens

    def most_images(self) -> int:
        """Return the most images of a prompt that may succeed: its own, and the string of each round.

        Images of the ids themselves, which are only noted, are not among them.
        """
        return 1 + len(self.schedule())

    def picture(self, original: Model, prompts: Sequence[Prompt]) -> Sequence[Image]:
        """Return the original model's images, whose latents are noised."""
        return original.generate(prompts)

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse more free tokens than the text encoder can read."""
        check_room("tokens", self.tokens, context)


@dataclass(frozen=True)
class TokenAttack(FreeTokens):
    """Parameters of Diffusion-MU-Attack, with its defaults.

    A prompt is too long if it has more than 60 tokens (with start and end), which UnlearnDiffAtk's data set
    leaves out, or if there is no room for the free tokens.

    Args:
        insertion: Where the free tokens are; "prefix" is published.
        timesteps: "pruning" attacks at 10 timesteps (10, 110, ... 910), "official" at 50.
        phase: Added to every timestep; 80 gives the pruning paper's other reading, 90, 190, ... 990.
        iterations: Adam steps at each timestep.
        target_steps: LMS steps of the image that is noised; "own" uses the model's own sampler.
        target_guidance: Guidance scale of that image; "own" uses the prompt's.
        judge_ids: Also judge, after each round, an image of the token ids themselves where their string has
            other ids, to tell in the trace what that costs (``token_success``). It never changes what is
            found.
        stream: Where each prompt's random stream comes from: "prompt" is the prompt's own seed, as in the
            official code, so that another seed of the run finds the same; "run" is the run's seed.
    """

    insertion: Literal["prefix", "suffix", "mid", "insert", "per-k-words"] = "prefix"
    timesteps: Literal["pruning", "official"] = "pruning"
    phase: Annotated[int, Field(ge=-10, le=89)] = 0
    iterations: Annotated[int, Field(ge=1)] = 40
    target_steps: Annotated[int | None, Field(ge=1, le=1000), _OWN] = 25
    target_guidance: Annotated[float | None, Field(ge=0), _OWN] = 7.5
    judge_ids: bool = later(True)
    stream: Literal["prompt", "run"] = later("prompt")

    longest: ClassVar[int | None] = 60

    def __post_init__(self) -> None:
        if self.schedule()[-1] > 999:
            last = PRESETS[self.timesteps][-1]
            raise ValueError(
                f"phase={self.phase}: expected at most {999 - last} with timesteps={self.timesteps}"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps per round."""
        return self.iterations

    def schedule(self) -> list[int]:
        """Return the timestep of each round."""
        return [t + self.phase for t in PRESETS[self.timesteps]]

    def picture(self, original: Model, prompts: Sequence[Prompt]) -> Sequence[Image]:
        """Return the original model's images, whose latents are noised."""
        if self.target_steps is not None:
            original = original.resampled("lms", self.target_steps)
        if (guidance := self.target_guidance) is not None:
            prompts = [replace(p, guidance=guidance) for p in prompts]
        return original.generate(prompts)
