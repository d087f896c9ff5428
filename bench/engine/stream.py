"""Measures images without keeping them: a set measure such as FID has no use for single ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from bench.core.digest import digest
from bench.core.errors import ContractError, PluginError, StoreError
from bench.core.protocols import Evaluator, SetScorer
from bench.core.types import Prompt, Sample, Score
from bench.engine.guard import guard
from bench.engine.images import Source
from bench.engine.judge import Judges, failing, reduce, shown, unfit, valid
from bench.engine.settings import Settings, tensors, timed
from bench.plan.cell import Cell
from bench.plugins.registry import create
from bench.store.metrics import Measurement, rate
from bench.tasks.tasks import Measure, Task

Extract = Callable[[Sequence[Sample]], Tensor]


@dataclass(frozen=True, slots=True)
class _Shard:
    """Images that are held at once.

    Args:
        name: Equal names, equal images.
        prompts: Theirs.
        place: From which on, and of how many.
        files: What is kept of them, by metric.
    """

    name: str
    prompts: Sequence[Prompt]
    place: tuple[int, int]
    files: Mapping[str, Path]

    def __str__(self) -> str:
        return (
            f"images {self.place[0] + 1} to {self.place[0] + len(self.prompts)} of {self.place[1]}"
        )


class Stream:
    """Makes images shard by shard, and keeps only their features and scores."""

    def __init__(self, settings: Settings, judges: Judges) -> None:
        self.settings, self.judges = settings, judges

    def measure(
        self,
        cell: Cell,
        task: Task,
        prompts: Sequence[Prompt],
        source: Source,
        seconds: dict[str, float],
    ) -> dict[str, Measurement]:
        """Measure images without keeping them: only their features and scores are kept.

        A shard that is there is not made again; measures with the same features share them.
        """
        failed: dict[str, PluginError] = {}  # by metric, or by key of the features
        measures = self._measures(cell, task, source, failed)
        shards = self._cut(measures, prompts, source)
        make = partial(self._make, measures, source, failed, seconds)
        for shard in [each for each in shards if not make(each, wait=False)]:
            make(shard, wait=True)  # another process makes it, or was killed at it
        files = {metric: [shard.files[metric] for shard in shards] for metric in measures}
        measured: dict[str, Measurement] = {}
        for measure in task.measures:
            metric = measure.metric
            if metric in measures and (reason := failed.get(measures[metric][0])):
                failed[metric] = reason
            if metric not in failed:
                with timed(seconds, "judge"), failing(failed, metric):
                    measured[metric] = self._measure(measure, task, files[metric])
        if not measured:
            raise next(iter(failed.values()))
        measured |= {
            m.metric: Measurement(None, 0, len(prompts), failed=str(failed[m.metric]))
            for m in task.measures
            if m.metric in failed
        }
        if "blacked-out" in files:
            black = torch.cat(list(self._kept(files["blacked-out"]))).flatten()
            measured["blacked-out"] = rate([None if b.isnan() else bool(b) for b in black])
        return measured

    def help(
        self, cell: Cell, task: Task, prompts: Sequence[Prompt], source: Source, place: float
    ) -> None:
        """Keep what measures need of the shards that nobody makes now, while another process measures.

        ``place``, from 0 to 1, says where to begin.
        """
        failed: dict[str, PluginError] = {}
        measures = self._measures(cell, task, source, failed)
        shards = self._cut(measures, prompts, source)
        first = int(place * len(shards))
        for shard in shards[first:] + shards[:first]:
            self._make(measures, source, failed, {}, shard, wait=False)

    def _measures(
        self, cell: Cell, task: Task, source: Source, failed: dict[str, PluginError]
    ) -> dict[str, tuple[str, Extract]]:
        """Return by metric what is kept of images, and its key."""
        measures: dict[str, tuple[str, Extract]] = {}
        for measure in task.measures:
            with failing(failed, measure.metric):
                measures[measure.metric] = self._extract(cell, measure)
        if source.screened:
            measures["blacked-out"] = ("blacked-out", _blacked_out)
        return measures

    def _cut(
        self, measures: Mapping[str, tuple[str, Extract]], prompts: Sequence[Prompt], source: Source
    ) -> list[_Shard]:
        """Cut prompts into shards: equal ones in every process, so that images have equal batches."""
        shards = []
        for start in range(0, len(prompts), self.settings.shard):
            part = prompts[start : start + self.settings.shard]
            about = [*source.key, [asdict(p) for p in part]]
            files = {
                metric: self.settings.artifacts.features(digest([*about, key]))
                for metric, (key, _) in measures.items()
            }
            shards.append(_Shard(digest(about), part, (start, len(prompts)), files))
        return shards

    def _make(
        self,
        measures: Mapping[str, tuple[str, Extract]],
        source: Source,
        failed: dict[str, PluginError],
        seconds: dict[str, float],
        shard: _Shard,
        *,
        wait: bool,
    ) -> bool:
        """Keep what measures need of a shard; ``wait=False``: return False if another process makes it."""

        def missing() -> dict[Path, tuple[str, Extract]]:
            return {
                path: measures[metric]
                for metric, path in shard.files.items()
                if measures[metric][0] not in failed and self._features(path) is None
            }

        if not missing():
            return True
        with self.settings.artifacts.lock(shard.name, str(shard), wait=wait) as mine:
            if mine and (left := missing()):  # nobody made it meanwhile
                with timed(seconds, "generate"):
                    samples = source.make(shard.prompts, shard.place)
                with timed(seconds, "judge"):
                    for path, (key, extract) in left.items():
                        with failing(failed, key):
                            self._keep(path, extract(samples))
        return mine

    def _extract(self, cell: Cell, measure: Measure) -> tuple[str, Extract]:
        """Return what a measure keeps of images, ``(n, width)`` with NaN for unscored, and its key."""
        ref = measure.evaluator
        source = cell.sources.get(
            ref.name, ""
        )  # edited code: what its old version kept does not count
        if measure.reduce == "set":
            whole: SetScorer = self.judges.prepared(ref, "set")

            def features(samples: Sequence[Sample]) -> Tensor:
                fit = [i for i, sample in enumerate(samples) if not unfit(sample)]
                if not fit:
                    return torch.full((len(samples), 1), torch.nan)
                found = extracted(whole, [shown(samples[i]) for i in fit], ref.name)
                kind = found.dtype if found.is_floating_point() else torch.float64
                every = torch.full((len(samples), found.shape[1]), torch.nan, dtype=kind)
                every[fit] = found.to("cpu", kind)
                return every

            return f"{whole.key}{source}", features
        score = self.judges.scorer(measure)

        def scores(samples: Sequence[Sample]) -> Tensor:
            values = [[torch.nan if s.value is None else s.value] for s in score(samples)]
            return torch.tensor(values, dtype=torch.float64)

        evaluator: Evaluator = create("evaluators", ref)
        needs = "|".join(evaluator.assets()).split("|") if hasattr(evaluator, "assets") else ()
        weights = {name: cell.assets[name] for name in needs if name in cell.assets}
        return digest([asdict(ref), evaluator.card.version, weights, source]), scores

    def _features(self, path: Path) -> Tensor | None:
        data = self.settings.artifacts.load(path)
        return None if data is None else load(data)["features"]

    def _keep(self, path: Path, features: Tensor) -> None:
        self.settings.artifacts.save(path, save(tensors({"features": features})))

    def _kept(self, files: Sequence[Path]) -> Iterator[Tensor]:
        """Yield the features of every shard.

        Raises:
            StoreError: One of them is gone since it was made.
        """
        for path in files:
            features = self._features(path)
            if features is None:
                raise StoreError(f"{path} was there a moment ago: give the same command again")
            yield features

    def _measure(self, measure: Measure, task: Task, files: Sequence[Path]) -> Measurement:
        """Return a streamed task's measure from what was kept of its images."""
        if measure.reduce != "set":
            values = torch.cat(list(self._kept(files))).flatten().tolist()
            scores = [Score(None if math.isnan(value) else value) for value in values]
            return reduce(measure, scores, (), None)
        whole: SetScorer = self.judges.prepared(measure.evaluator, "set")
        n = unscored = 0

        def shards() -> Iterator[Tensor]:
            nonlocal n, unscored
            for features in self._kept(files):
                readable = features[features.isfinite().all(1)]
                n, unscored = n + len(readable), unscored + len(features) - len(readable)
                if len(readable):
                    yield readable

        with guard(f"evaluator {measure.evaluator.name}"):
            score = valid(whole.score(shards(), task.prompts))
        if score.value is None:
            n, unscored = 0, n + unscored
        return Measurement(score.value, n, unscored, detail=score.detail)


def extracted(whole: SetScorer, samples: Sequence[Sample], name: str) -> Tensor:
    """Return the features that an evaluator extracts, ``(len(samples), width)``.

    Raises:
        PluginError: It raised something, or returned something else.
    """
    with guard(f"evaluator {name}"):
        found = whole.features(samples)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(samples):
            got = tuple(getattr(found, "shape", ())) or type(found).__name__
            raise ContractError(f"returned features {got}, expected ({len(samples)}, width)")
    return found


def _blacked_out(samples: Sequence[Sample]) -> Tensor:
    black = [torch.nan if unfit(s) else float(s.image.getbbox() is None) for s in samples]
    return torch.tensor(black).view(-1, 1)
