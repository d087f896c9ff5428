"""What every evaluator keeps to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, get_args

import numpy as np
from PIL import Image

from bench.core.digest import digest
from bench.core.errors import BenchError, PluginError
from bench.core.types import Prompt, Sample, Score, World
from bench.engine.checks.finding import Rules
from bench.engine.checks.lab import Lab, settings_left, streams
from bench.engine.guard import guard, noticed
from bench.engine.judge import given_by, outside, valid
from bench.engine.stream import extracted
from bench.plugins.registry import Ref, create, load
from bench.tasks.lookup import find, task_names

UNREADABLE = 1
"""Which of the pictures cannot be read."""
WAYS = ((4, 6), (4, 6), (1, 1), (1, 6), (2, 3))
"""The batch size, and how many pictures are given at a time; the first two are the same."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Scores of six pictures of unlike sizes, of which one cannot be read.

    Args:
        samples: The pictures.
        before: Their pixels before they were judged.
        found: The scores, by how the evaluator was asked.
        failed: What it raised at the picture that cannot be read; then it was not asked about that one.
        left: What it left changed, in words.
        rate: Whether a rate may be taken of its scores: no task that is known takes their mean alone.
    """

    samples: Sequence[Sample]
    before: Sequence[bytes]
    found: Mapping[str, Sequence[Score]]
    failed: str
    left: list[str]
    rate: bool = True


def judge_twice(ref: Ref, label: str, lab: Lab) -> Verdicts:
    """Ask an evaluator about the same pictures again and again, in batches of several sizes.

    Args:
        ref: The evaluator.
        label: What it looks for in each picture.
        lab: Whose assets it may use.

    Raises:
        PluginError: It raised something at a picture that can be read, or does not return what it should.
    """
    samples = [Sample(_prompt(i, label), picture(i)) for i in range(6)]
    before = [_bytes(sample.image) for sample in samples]
    failed, indices = "", list(range(6))
    _scores(ref, lab, WAYS[0], [s for i, s in enumerate(samples) if i != UNREADABLE])
    try:
        _scores(ref, lab, (1, 1), [Sample(_prompt(UNREADABLE, label), picture(UNREADABLE))])
    except PluginError as exc:
        failed, indices = str(exc), [i for i in indices if i != UNREADABLE]
    found = {}
    for seed, way in enumerate(WAYS):
        with streams(seed), noticed() as left:
            given = [samples[i] for i in indices]
            found[f"{seed}: batch {way[0]}, {way[1]} at a time"] = _scores(ref, lab, way, given)
    return Verdicts(
        [samples[i] for i in indices],
        [before[i] for i in indices],
        found,
        failed,
        left,
        _rated(ref),
    )


def _rated(ref: Ref) -> bool:
    """Say whether a rate may be taken of an evaluator's scores, by the tasks that use it."""
    if load("evaluators", ref.name).scope != "image":
        return False
    uses = set[str]()
    for world in get_args(World):
        for task in task_names(world):
            with suppress(BenchError):  # somebody's broken task
                measures = find(task, world).measures
                uses |= {m.reduce for m in measures if m.evaluator.name == ref.name}
    return "rate" in uses or not uses


def _prompt(i: int, label: str) -> Prompt:
    return Prompt(str(i), "a church " * (1 + 12 * i), i, label=label)


def picture(i: int) -> Image.Image:
    """Return a picture; the file of one of them ends too early, and one is grey."""
    coarse = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((32 + 8 * i, 40))
    if i == UNREADABLE:
        file = BytesIO()
        image.save(file, "png")
        return Image.open(BytesIO(file.getvalue()[: len(file.getvalue()) // 2]))
    return image.convert("L") if i == 3 else image


def _bytes(image: Image.Image) -> bytes:
    try:
        return image.tobytes()
    except OSError:
        return b""


def _scores(ref: Ref, lab: Lab, way: tuple[int, int], samples: Sequence[Sample]) -> list[Score]:
    """Return a score for each sample; of a set's judge that of all, and of each if it can be read."""
    batch, shard = way
    ctx = lab.settings(batch).context(digest(asdict(ref)), "evaluators")
    with guard(f"evaluator {ref.name}"):
        judge: Any = create("evaluators", ref)
        prepared = judge.prepare(ctx)
    parts = [samples[i : i + shard] for i in range(0, len(samples), shard)]
    if judge.scope == "image":
        return [score for part in parts for score in given_by(prepared, part, ref.name)]
    features = [extracted(prepared, part, ref.name) for part in parts]
    rows = [row for part in features for row in part]
    fit = [good for part in features if len(good := part[part.isfinite().all(1)])]
    if not fit:
        return [Score(None)] * len(samples)
    with guard(f"evaluator {ref.name}"):
        whole = valid(prepared.score(iter(fit), [sample.prompt for sample in samples]))
    return [whole if bool(row.isfinite().all()) else Score(None) for row in rows]


def _scores_all(seen: Verdicts) -> str:
    for scores in seen.found.values():
        for sample, score in zip(seen.samples, scores, strict=True):
            if score.value is None and sample.prompt.id != str(UNREADABLE):
                why = score.detail.get("error", "it does not say why")
                size = "x".join(map(str, sample.image.size))
                return f"a picture of {size} pixels, {sample.image.mode}, is left unscored: {why}"
    return ""


def _unreadable(seen: Verdicts) -> str:
    advice = 'catch the error, and give Score(None, {"error": ...}) for that picture'
    if seen.failed:
        return f"a picture that cannot be read stops it ({seen.failed}): {advice}"
    if any(scores[UNREADABLE].value is not None for scores in seen.found.values()):
        return f"it scores a picture that cannot be read, which must not count as safe: {advice}"
    return ""


def _same_twice(seen: Verdicts) -> str:
    once, twice, *_ = seen.found.values()
    if once != twice:
        return "asked again, it gives other scores or details: draw no random numbers, measure no times"
    return ""


def _bounded(seen: Verdicts) -> str:
    wrong = seen.rate and outside([score for scores in seen.found.values() for score in scores])
    return f'{wrong}; for a mean, name it in a task with reduce = "mean"' if wrong else ""


def _any_batch(seen: Verdicts) -> str:
    once, _, *others = seen.found.values()
    names = [*seen.found][2:]
    for way, other in zip(names, others, strict=True):
        for mine, theirs in zip(once, other, strict=True):
            if not _close(mine.value, theirs.value) or mine.detail.keys() != theirs.detail.keys():
                return (
                    f"in another batch ({way[3:]}) it gives other scores: score each picture by itself, "
                    "with networks in eval()"
                )
    return ""


def _close(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-12)


def _pictures(seen: Verdicts) -> str:
    after = [_bytes(sample.image) for sample in seen.samples]
    if list(seen.before) != after or any(
        sample.image.info for i, sample in enumerate(seen.samples) if seen.before[i]
    ):
        return "it changes the pictures, or their info: work on copies"
    return ""


RULES: Rules[Verdicts] = {
    "scores every picture that can be read": _scores_all,
    "leaves a picture unscored that cannot be read": _unreadable,
    "does the same twice": _same_twice,
    "does the same in any batch": _any_batch,
    "gives scores from 0 to 1": _bounded,
    "leaves pictures as they are": _pictures,
    "leaves the process's settings as they are": lambda seen: settings_left(seen.left),
}
