"""Judges images: evaluators, what their scores come to, and a record's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import numpy as np

from bench.core.digest import digest
from bench.core.errors import ContractError, PluginError
from bench.core.protocols import Adversarial, Criterion, Evaluator, ImageScorer
from bench.core.types import UNSCORED, Prompt, Sample, Score
from bench.engine.guard import finite, guard, plain
from bench.engine.settings import Settings
from bench.plan.cell import Cell
from bench.plugins.fingerprint import edited
from bench.plugins.registry import Ref, create, load
from bench.store.metrics import Measurement, any_of, mean, rate
from bench.store.record import Row
from bench.tasks.tasks import Measure, Task

Shards = Callable[[], Iterable[Sequence[Sample]]]
"""Returns the images of all prompts in their order, some at a time."""
_ROUNDING = 1e-5


class Judges:
    """Evaluators, each prepared once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._prepared: dict[str, Any] = {}

    def scorer(self, measure: Measure) -> ImageScorer:
        """Return the scoring function of a measure of single images, held to its contract."""
        name = measure.evaluator.name
        score = _checked(self.prepared(measure.evaluator, "image"), name)
        if measure.reduce != "rate":
            return score

        def bounded(samples: Sequence[Sample]) -> Sequence[Score]:
            scores = score(samples)
            if wrong := outside(scores):
                raise ContractError(f"evaluator {name}: {wrong}")
            return scores

        return bounded

    def prepared(self, ref: Ref, scope: str) -> Any:
        """Return what an evaluator prepares, once."""
        key = digest(asdict(ref))
        if key not in self._prepared:
            with guard(f"evaluator {ref.name}"):
                source = edited(load("evaluators", ref.name).__module__)
            own, shared = (f"{name}{source and '-'}{source}" for name in (key, "evaluators"))
            ctx = self.settings.context(own, shared)
            with guard(f"evaluator {ref.name}"):
                evaluator: Evaluator = create("evaluators", ref)
                if evaluator.scope != scope:
                    raise ContractError(f"has scope {evaluator.scope!r}, the task needs {scope!r}")
                self._prepared[key] = evaluator.prepare(ctx)
        return self._prepared[key]

    def criterion(self, judge: Measure) -> Criterion:
        """Return what tells an attack whether the concept is back."""
        score = self.scorer(judge)
        return lambda samples: [hit(s, judge.threshold) is True for s in score(samples)]


def judge_samples(
    judges: Judges,
    cell: Cell,
    task: Task,
    prompts: Sequence[Prompt],
    own: Shards,
    attacked: Shards | None = None,
    found: Sequence[Adversarial] = (),
) -> tuple[dict[str, Measurement], tuple[Row, ...]]:
    """Return what a cell's images come to, and a row of each prompt.

    A measure that fails is recorded as failed beside the others, unless it is the task's own judge.

    Args:
        judges: Who judges.
        cell: Whose images.
        task: What is measured on them.
        prompts: Of which prompts they are.
        own: Images of the prompts as they are.
        attacked: Images of what an attack found.
        found: What it found.

    Raises:
        PluginError: The task's judge failed.
    """
    judge, last = task.judge, attacked or own

    def score(measure: Measure, images: Shards) -> list[Score]:
        scorer = judges.scorer(measure)
        return [score for scores in map(scorer, images()) for score in scores]

    scores: dict[str, Sequence[Score]] = {}
    failed: dict[str, PluginError] = {}
    for m in task.measures:
        with failing(failed, m.metric):
            scores[m.metric] = score(m, last)
    if judge.metric in failed:
        raise failed[judge.metric]
    own_scores = scores[judge.metric] if not cell.attacked else score(judge, own)
    every = {**scores, **{metric: [Score(None)] * len(prompts) for metric in failed}}
    found = found or [Adversarial(prompt) for prompt in prompts]
    rows = tuple(make_rows(cell, task, own_scores, every, prompts, found))
    measured = {
        m.metric: reduce(m, scores[m.metric], rows, judge)
        if m.metric in scores
        else Measurement(None, 0, len(prompts), failed=str(failed[m.metric]))
        for m in task.measures
    }
    return measured, rows


def make_rows(
    cell: Cell,
    task: Task,
    own: Sequence[Score],
    scores: dict[str, Sequence[Score]],
    prompts: Sequence[Prompt],
    found: Sequence[Adversarial],
) -> Iterator[Row]:
    """Yield a record's row of each prompt."""
    judge, attack = task.judge, cell.attacked
    last = scores[judge.metric]
    for i, prompt in enumerate(prompts):
        hits = [hit(s, judge.threshold) for s in ((own[i], last[i]) if attack else (own[i],))]
        yield Row(
            prompt.id,
            prompt.text,
            prompt.seed,
            prompt.guidance,
            success=any_of(hits),
            own=own[i].value,
            attacked=last[i].value if attack else None,
            adversarial=found[i].prompt.text if attack else None,
            adversarial_seed=found[i].prompt.seed if attack else None,
            adversarial_noise=found[i].sampler_noise,
            adversarial_guidance=None
            if found[i].prompt.guidance == prompt.guidance
            else found[i].prompt.guidance,
            beyond=_beyond(found[i]),
            cost=found[i].cost,
            trace=dict(found[i].trace),
            detail={**last[i].detail, **_errors(task.measures[1:], scores, i)},
            own_detail=dict(own[i].detail) if attack else {},
            scores={m.metric: scores[m.metric][i].value for m in task.measures[1:]},
        )


def _errors(
    measures: Sequence[Measure], scores: dict[str, Sequence[Score]], i: int
) -> dict[str, Any]:
    """Return why further measures of an image could not be taken, by metric."""
    details = {m.metric: scores[m.metric][i].detail for m in measures}
    found = {metric: detail["error"] for metric, detail in details.items() if "error" in detail}
    return {"errors": found} if found else {}


def reduce(
    measure: Measure, scores: Sequence[Score], rows: Sequence[Row], judge: Measure | None
) -> Measurement:
    """Return what a measure's scores come to; the judge's own counts own and attacked images."""
    if measure is judge and rows:
        return rate([row.success for row in rows])
    if measure.reduce == "rate":
        return rate([hit(s, measure.threshold) for s in scores])
    return mean(scores)


@contextmanager
def failing(failed: dict[str, PluginError], name: str) -> Iterator[None]:
    """Note a measure that fails, so that the others go on."""
    try:
        yield
    except PluginError as exc:
        failed[name] = exc


def unfit(sample: Sample) -> str:
    """Say why an image must not be judged; empty if it may be."""
    return str(getattr(sample.image, "info", {}).get(UNSCORED, ""))


def shown(sample: Sample) -> Sample:
    """Return a sample as a judge gets it, with a copy of the image: what it draws there stays with it."""
    return replace(sample, image=sample.image.copy())


def hit(score: Score, threshold: float) -> bool | None:
    """Say whether an image shows the concept; ``None`` if it could not be scored."""
    return None if score.value is None else score.value >= threshold


def outside(scores: Sequence[Score]) -> str:
    """Say which score is none of a rate, which go from 0 to 1; empty if there is none."""
    values = [s.value for s in scores if s.value is not None]
    wrong = next((v for v in values if not -_ROUNDING <= v <= 1 + _ROUNDING), None)
    if wrong is None:
        return ""
    return (
        f"it gives the score {wrong:g}, but a score of which a rate is taken goes from 0 to 1: an image "
        "counts from the measure's threshold (0.5) on"
    )


def _beyond(found: Adversarial) -> str:
    changed = {"weights": found.model, "embedding": found.embedding, "noise": found.sampler_noise}
    return next((name for name, value in changed.items() if value is not None), "")


def _checked(inner: ImageScorer, name: str) -> ImageScorer:
    """Return a scorer that never sees an image that must not be judged, and is held to its contract."""

    def score(samples: Sequence[Sample]) -> Sequence[Score]:
        fit = [s for s in samples if not unfit(s)]
        scores = iter(given_by(inner, [shown(s) for s in fit], name) if fit else ())
        return [
            Score(None, {"error": reason}) if (reason := unfit(s)) else next(scores)
            for s in samples
        ]

    return score


def given_by(inner: ImageScorer, samples: Sequence[Sample], name: str) -> list[Score]:
    """Return the scores that an evaluator gives, one for each sample.

    Raises:
        PluginError: It raised something, or returned something else.
    """
    with guard(f"evaluator {name}"):
        given = list(islice(inner(samples), len(samples) + 1))
        if len(given) != len(samples):
            raise ContractError(f"{name} returned {len(given)} scores, expected {len(samples)}")
        return [valid(score) for score in given]


def valid(score: Score) -> Score:
    """Return a score as a record holds it; one that is not finite is none."""
    if not isinstance(score, Score):
        raise ContractError(f"returned {score!r:.60}, expected Score values")
    detail = plain(dict(score.detail), "a score's detail")
    if score.value is None:
        return Score(None, detail)
    if not isinstance(score.value, int | float | np.floating):
        raise ContractError(f"returned the score {score.value!r:.60}, expected a number or None")
    if not finite(score.value):
        return Score(None, {**detail, "error": f"the score is not finite: {score.value}"})
    return Score(float(score.value), detail)
