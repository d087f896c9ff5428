"""The evaluators of the emoji world: does a picture show the label of its prompt?

They use small networks that were trained on rendered scenes, independently of the diffusion model. A
picture that cannot be judged is unscored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from bench import Card, Context, ImageScorer, Prompt, Sample, Score, SetScorer, SpecError
from bench.emoji import JUDGES
from evaluators._classify import near
from evaluators._each import each, finite

if TYPE_CHECKING:
    from torch import Tensor

    from bench.emoji.judges import Judge

_SOURCE = "this project, bench/emoji"


@dataclass(frozen=True)
class Subject:
    """1 if the most likely of 39 subjects is the prompt's label, and likely enough.

    One of the 39 is "nothing". How likely it must be is the judge's threshold: of the pictures without a
    task's object that it was set on, at most one in a thousand reaches it.

    Args:
        top_k: How many of the likeliest subjects count; beyond the first, whatever their probability.
    """

    card: ClassVar = Card("Emoji subject judge", _SOURCE, version=3)
    scope: ClassVar = "image"

    top_k: Annotated[int, Field(ge=1, le=39)] = 1

    def check(self, prompts: Sequence[Prompt], asset: Callable[[str], Path]) -> None:
        """Refuse labels that are not subjects."""
        _known("emoji-subject", ("subject",), prompts)

    def prepare(self, ctx: Context) -> ImageScorer:
        """Load the judge."""
        return _top_k("subject", self.top_k)


@dataclass(frozen=True)
class Style:
    """1 if the most likely of five styles is the prompt's label, and likely enough.

    One of the five is "none", and one is "photo": what a picture is without a style. The threshold is set
    as the subject judge's.
    """

    card: ClassVar = Card("Emoji style judge", _SOURCE, version=2)
    scope: ClassVar = "image"

    def check(self, prompts: Sequence[Prompt], asset: Callable[[str], Path]) -> None:
        """Refuse labels that are not styles."""
        _known("emoji-style", ("style",), prompts)

    def prepare(self, ctx: Context) -> ImageScorer:
        """Load the judge."""
        return _top_k("style", 1)


def _known(judge: str, questions: Iterable[str], prompts: Sequence[Prompt]) -> None:
    """Refuse prompts whose label none of the judges knows."""
    known: list[str] = []
    for question in questions:
        known += json.loads((JUDGES / question / "config.json").read_bytes())["labels"]
    for label in {prompt.label: None for prompt in prompts}:
        if label not in known:
            raise SpecError(f"{judge}: no label is {label!r}; known: {near(label, known)}")


def _top_k(question: str, k: int) -> ImageScorer:
    from bench.emoji.judges import load_judge

    judge = load_judge(JUDGES / question)

    def verdicts(images: list[Any], samples: Sequence[Sample]) -> list[Score]:
        probabilities = finite(judge(images))
        scores = []
        seen = judge.seen(probabilities, k)
        for row, sees, sample in zip(probabilities, seen, samples, strict=True):
            asked = judge.labels.index(sample.prompt.label)
            best = judge.labels[int(row.argmax())]
            detail = {"found": best, "probability": round(float(row[asked]), 4)}
            scores.append(Score(float(sees[asked]), detail))
        return scores

    return lambda samples: each(samples, verdicts, max(len(samples), 1))


@dataclass(frozen=True)
class Body:
    """1 if the picture shows any body part; the detail names the parts.

    Args:
        threshold: Lowest probability at which a part counts. ``None`` is the judge's own threshold: of
            the pictures without body parts that it was set on, at most one in a thousand reaches it.
    """

    card: ClassVar = Card("Emoji body part judge", _SOURCE, version=3)
    scope: ClassVar = "image"

    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None

    def prepare(self, ctx: Context) -> ImageScorer:
        """Load the judge."""
        from bench.emoji.judges import load_judge

        judge = load_judge(JUDGES / "body")
        threshold = judge.threshold if self.threshold is None else self.threshold

        def verdicts(images: list[Any], samples: Sequence[Sample]) -> list[Score]:
            scores = []
            for row in finite(judge(images)).tolist():
                found = {
                    label: round(p, 4)
                    for label, p in zip(judge.labels, row, strict=True)
                    if p >= threshold
                }
                scores.append(Score(float(bool(found)), {"found": found, "highest": max(row)}))
            return scores

        return lambda samples: each(samples, verdicts, max(len(samples), 1))


@dataclass(frozen=True)
class Label:
    """1 if the picture shows the prompt's label, a subject or a style."""

    card: ClassVar = Card("Emoji label judge", _SOURCE, version=3)
    scope: ClassVar = "image"

    def check(self, prompts: Sequence[Prompt], asset: Callable[[str], Path]) -> None:
        """Refuse labels that are neither subject nor style."""
        _known("emoji-label", ("subject", "style"), prompts)

    def prepare(self, ctx: Context) -> ImageScorer:
        """Load both judges."""
        from bench.emoji.world import STYLES

        subject, style = _top_k("subject", 1), _top_k("style", 1)

        def score(samples: Sequence[Sample]) -> list[Score]:
            return [
                score
                for sample in samples
                for score in (style if sample.prompt.label in STYLES else subject)([sample])
            ]

        return score


@dataclass(frozen=True)
class Frechet:
    """Fréchet distance between generated pictures and held-out rendered scenes; lower is better.

    It takes FID's place in the emoji world: Gaussian statistics of the 128 features before the subject
    judge's last layer. It must not be compared with an FID.
    """

    card: ClassVar = Card("Emoji Fréchet distance", _SOURCE, version=3)
    scope: ClassVar = "set"

    def prepare(self, ctx: Context) -> SetScorer:
        """Load the judge."""
        from bench.emoji.judges import load_judge

        return _SubjectFeatures(load_judge(JUDGES / "subject"))


@dataclass(frozen=True)
class _SubjectFeatures:
    judge: Judge

    @property
    def key(self) -> str:
        weights = (JUDGES / "subject" / "model.safetensors").read_bytes()
        return f"emoji subject {sha256(weights).hexdigest()[:16]}"

    def features(self, samples: Sequence[Sample]) -> Tensor:
        import torch

        from bench.emoji.judges import features

        def extract(samples: Sequence[Sample]) -> Tensor:
            try:
                return features(self.judge, [s.image for s in samples])
            except Exception:
                if len(samples) == 1:
                    return torch.full((1, self.judge.net.num_features), torch.nan)
                return torch.cat([extract([sample]) for sample in samples])

        return extract(samples)

    def score(self, shards: Iterable[Tensor], prompts: Sequence[Prompt]) -> Score:
        from safetensors.torch import load_file

        from evaluators._moments import Moments

        found = Moments.of(shards)
        if found.n < 2:
            return Score(None, {"n": found.n, "error": "fewer than two pictures"})
        reference = load_file(JUDGES / "subject" / "reference.safetensors")
        value = found.frechet(reference["mean"].double(), reference["covariance"].double())
        return Score(value, {"n": found.n})
