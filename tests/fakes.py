"""Plug-ins that misbehave, one way each."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from bench import (
    Adversarial,
    Attacker,
    Card,
    Concept,
    Context,
    ImageScorer,
    IncompatibleError,
    Model,
    Prompt,
    Sample,
    Score,
    Target,
    Threat,
    World,
)
from bench.plugins.registry import Kind, Ref, create, resolved

float64_text = pytest.mark.skipif(
    version("transformers").startswith("4."),
    reason="transformers 4 masks no text encoder in float64",
)


@dataclass(frozen=True)
class Raises:
    card: ClassVar = Card("Raises", "")

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        raise ZeroDivisionError("by design")


@dataclass(frozen=True)
class Unfit:
    card: ClassVar = Card("Does not fit", "")

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        raise IncompatibleError("needs a transformer, got a UNet")


@dataclass(frozen=True)
class WrongType:
    card: ClassVar = Card("Returns a number", "")

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Any:
        return 3


@dataclass(frozen=True)
class Peeks:
    """Says that it is a black box, and reads a weight."""

    card: ClassVar = Card("Peeks", "")
    threat: ClassVar = Threat("black", "prompt")

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        target.victim.pipe.unet.state_dict()
        return lambda prompts: (Adversarial(p) for p in prompts)


@dataclass(frozen=True)
class Forgets:
    """Returns nothing for the last prompt."""

    card: ClassVar = Card("Forgets", "")
    threat: ClassVar = Threat("black", "prompt")

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        return lambda prompts: (Adversarial(p) for p in prompts[:-1])


CALLS = Path("calls.txt")


@dataclass(frozen=True)
class DiesOnce:
    """Is interrupted after two prompts the first time; notes every prompt that it worked on."""

    card: ClassVar = Card("Dies once", "")
    threat: ClassVar = Threat("black", "prompt")
    by: ClassVar = signal.SIGINT

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        def attack(prompts: Sequence[Prompt]) -> Iterator[Adversarial]:
            first = not CALLS.exists()
            for n, prompt in enumerate(prompts):
                if first and n == 2:
                    signal.raise_signal(self.by)
                with CALLS.open("a") as stream:
                    stream.write(prompt.id + "\n")
                yield Adversarial(
                    Prompt(
                        prompt.id, f"lo {prompt.text}", prompt.seed, prompt.guidance, prompt.label
                    )
                )

        return attack


def _scores(samples: Sequence[Sample]) -> list[Score]:
    return [Score(None, {"error": "blind"}) if i == 0 else Score(0.0) for i in range(len(samples))]


@dataclass(frozen=True)
class Blind:
    """Cannot score the first image."""

    card: ClassVar = Card("Blind", "")
    scope: ClassVar = "image"

    def prepare(self, ctx: Context) -> ImageScorer:
        return _scores


@dataclass(frozen=True)
class Miscounts:
    card: ClassVar = Card("Miscounts", "")
    scope: ClassVar = "image"

    def prepare(self, ctx: Context) -> ImageScorer:
        return lambda samples: [Score(0.0)]


@dataclass(frozen=True)
class NeverEnds:
    card: ClassVar = Card("Scores without end", "")
    scope: ClassVar = "image"

    def prepare(self, ctx: Context) -> Callable[[Sequence[Sample]], Any]:
        return lambda samples: repeat(Score(0.0))


judged: Callable[[str], None] = len  # told the id of every image that a judge sees


@dataclass(frozen=True)
class Judges:
    """Gives every image the same score."""

    card: ClassVar = Card("Judges", "")
    scope: ClassVar = "image"
    value: ClassVar[Any] = 0.0
    detail: ClassVar[Any] = {}

    def prepare(self, ctx: Context) -> ImageScorer:
        def score(samples: Sequence[Sample]) -> list[Score]:
            for sample in samples:
                judged(sample.prompt.id)
            return [Score(self.value, self.detail) for _ in samples]

        return score


@dataclass(frozen=True)
class Colour:
    """A set's features: the mean colour of each image."""

    card: ClassVar = Card("Colour", "")
    scope: ClassVar = "set"

    def prepare(self, ctx: Context) -> Any:
        def features(samples: Sequence[Sample]) -> torch.Tensor:
            pixels = [np.asarray(s.image, float).mean((0, 1)) for s in samples]
            return torch.tensor(np.array(pixels))

        return SimpleNamespace(key="colour", features=features)


@dataclass(frozen=True)
class Does:
    """A method, an attack or a judge that does something of the test's, then what it should."""

    card: ClassVar = Card("Does", "")
    threat: ClassVar = Threat("white", "prompt")
    scope: ClassVar = "image"
    what: ClassVar[Callable[..., Any]]

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Any:
        return type(self).what(model) or model

    def prepare(self, given: Any, ctx: Context | None = None) -> Any:
        if ctx is None:
            return lambda samples: type(self).what(samples) or [Score(0.0) for _ in samples]
        return lambda prompts: (
            type(self).what(given, prompts)
            or (Adversarial(replace(p, text=f"lo {p.text}")) for p in prompts)
        )


@dataclass(frozen=True)
class DoesInTheDark(Does):
    """An attack that is a black box by what it says."""

    threat: ClassVar = Threat("black", "prompt")


def finished(kind: Kind, name: str, concept: Concept, world: World = "emoji", **params: Any) -> Any:
    """Return a plug-in as the harness hands it over, with a world's defaults for a concept."""
    return create(kind, resolved(kind, Ref(name, params), concept, world))


@dataclass(frozen=True)
class NoCard:
    """Has no card."""


class _OddDoc:
    __doc__ = 3  # type: ignore[assignment]


@dataclass(frozen=True)
class OddCard(_OddDoc):
    """Says \x1b]0;title\x07 [red]:x:"""

    card: ClassVar = Card("\x1b]0;title\x07 [red]:x:", "")

    size: int = 3


def sample(image: Any, label: str = "") -> Sample:
    """Return a picture as a judge gets it."""
    return Sample(Prompt("0", "text", 0, label=label), image)
