"""Computes one cell: erase, attack, generate, judge. The only module that calls plug-ins."""

from __future__ import annotations

import json
import math
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bench.assets import finder
from bench.errors import (
    BenchError,
    ContractError,
    IncompatibleError,
    PluginError,
    SpecError,
    StoreError,
)
from bench.exclusion import may_mention_minors
from bench.metrics import Measurement, mean, rate
from bench.models import delta, load_model
from bench.models.diffusers import DiffusersModel
from bench.plan import Cell, digest
from bench.protocols import Adversarial, Attack, Evaluator, Method, Model, SetScorer, Target
from bench.registry import ROOT, Ref, create
from bench.replay import Replay
from bench.safety import blurred, unsafe
from bench.store import Artifacts, Result, Row, write
from bench.tasks import Measure, Task, load_task
from bench.types import Context, Cost, Prompt, Sample, Score
from bench.workers import Workers

Progress = Callable[[str, int, int], None]
Scorer = Callable[[Sequence[Sample]], Sequence[Score]]
Extract = Callable[[Sequence[Sample]], Tensor]


@dataclass(frozen=True, slots=True)
class Settings:
    """How cells are computed. Nothing here changes a result.

    Args:
        device: Where tensors live.
        batch_size: Images made or attacked at once.
        keep_images: Keep images on disk; ``None``: all but those of streamed tasks.
        keep_unsafe: Keep images of photographs for an nsfw concept as they are; else blurred only.
        artifacts: The cache.
        assets: The user's paths of assets.
        progress: Called as ``progress(stage, done, total)``.
        shard: Images of a streamed task that are held at once.
    """

    device: str = "cpu"
    batch_size: int = 64
    keep_images: bool | None = None
    keep_unsafe: bool = False
    artifacts: Artifacts = field(default_factory=Artifacts)
    assets: Mapping[str, Path] = field(default_factory=dict)
    prompts: Path | None = None  # as in the Spec
    judge: str = ""  # as in the Spec
    progress: Progress = lambda stage, done, total: None
    shard: int = 256

    def to_json(self) -> dict[str, Any]:
        """Return what another process needs to attack with the same settings."""
        return {
            "device": self.device,
            "batch_size": self.batch_size,
            "cache": str(self.artifacts.root),
            "assets": {name: str(path) for name, path in self.assets.items()},
            "prompts": str(self.prompts or ""),
            "judge": self.judge,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Settings:
        """Return settings that :meth:`to_json` wrote."""
        return cls(
            raw["device"],
            raw["batch_size"],
            artifacts=Artifacts(Path(raw["cache"])),
            assets={name: Path(path) for name, path in raw["assets"].items()},
            prompts=Path(raw["prompts"]) if raw["prompts"] else None,
            judge=raw["judge"],
        )


class QueryOnly:
    """A model with its weights hidden, so that a black-box attack is one by construction."""

    def __init__(self, generate: Callable[[Sequence[Prompt]], Sequence[Image.Image]]) -> None:
        self.__generate = generate

    def generate(self, prompts: Sequence[Prompt]) -> Sequence[Image.Image]:
        """Generate; texts only."""
        return self.__generate(prompts)

    def __getattr__(self, name: str) -> Any:
        raise ContractError(f"the attack may only generate with this model; it asked for {name!r}")


@dataclass(frozen=True, slots=True)
class Erased:
    """An erased model, a key that names its weights, its card, and whether its images may be unsafe."""

    model: DiffusersModel
    key: str
    card: dict[str, Any]
    unsafe: bool = False


class Runner:
    """Computes cells, and keeps models, judges and images between them.

    Args:
        settings: How.
        workers: Who attacks; this process alone by default.
    """

    def __init__(self, settings: Settings, workers: Workers | None = None) -> None:
        self.settings = settings
        self._workers = workers or Workers()
        self._models: dict[tuple[str, ...], DiffusersModel] = {}
        self._erased: tuple[str, Erased] | None = None
        self._evaluators: dict[str, Any] = {}
        self._memory: dict[str, Image.Image] = {}

    def run(self, cell: Cell) -> Result:
        """Return the record of a cell; a plug-in's failure becomes a record, not a crash."""
        space = create("attacks", cell.attack).threat.space
        try:
            return replace(self._run(cell), space=space)
        except IncompatibleError as exc:
            return Result(cell, "skipped", reason=str(exc), space=space)
        except PluginError as exc:
            return Result(cell, "failed", reason=f"{type(exc).__name__}: {exc}", space=space)

    def _run(self, cell: Cell) -> Result:
        seconds: dict[str, float] = {}
        task = self._task(cell)
        prompts = task.prompts[: cell.prompts]
        with _timed(seconds, "erase"):
            erased = self._victim(cell, task)
        if task.streamed:
            measured = self._stream(cell, task, prompts, erased, seconds)
            rows: tuple[Row, ...] = ()
        else:
            measured, rows = self._judge(cell, task, prompts, erased, seconds)
        return Result(
            cell,
            "ok",
            measurements=measured,
            rows=rows,
            erasure=erased.card,
            seconds={stage: round(s, 3) for stage, s in seconds.items()},
            environment=environment(self.settings.device),
            excluded=task.excluded,
        )

    def _judge(
        self,
        cell: Cell,
        task: Task,
        prompts: Sequence[Prompt],
        erased: Erased,
        seconds: dict[str, float],
    ) -> tuple[dict[str, Measurement], tuple[Row, ...]]:
        """Attack if asked to, make the images, and judge each."""
        judge = task.measures[0]
        if task.role == "target" and cell.attack.name != "none":
            with _timed(seconds, "attack"):
                found = self._attack(cell, task, prompts, erased)
        else:
            found = [Adversarial(prompt) for prompt in prompts]

        # Success is never taken from the attack: images are made again and judged again.
        with _timed(seconds, "generate"):
            own = self._images(erased, prompts, "generate")
            attacked = self._replay(erased, found)
        with _timed(seconds, "judge"):
            scores: dict[str, Sequence[Score]] = {
                m.metric: _withheld(erased.model, attacked, self._scorer(m.evaluator)(attacked))
                for m in task.measures
            }
            own_scores = (
                scores[judge.metric]
                if cell.attack.name == "none"
                else self._scorer(judge.evaluator)(own)
            )
        rows = tuple(_rows(cell, task, own_scores, scores, prompts, found))
        measured = {m.metric: _reduce(m, scores[m.metric], rows, judge) for m in task.measures}
        if erased.model.screen:
            measured["blacked-out"] = rate([s.image.getbbox() is None for s in attacked])
        return measured, rows

    def _stream(
        self,
        cell: Cell,
        task: Task,
        prompts: Sequence[Prompt],
        erased: Erased,
        seconds: dict[str, float],
    ) -> dict[str, Measurement]:
        """Measure images without keeping them: a shard's features and scores are what is left of it.

        A shard that is there is not made again; measures with the same features share them.
        """
        measures = {m.metric: self._extract(cell, m) for m in task.measures}
        if erased.model.screen:
            measures["blacked-out"] = ("blacked-out", _blacked_out)
        model = [erased.key, asdict(erased.model.sampling)]
        files: dict[str, list[Path]] = {metric: [] for metric in measures}
        for start in range(0, len(prompts), self.settings.shard):
            shard = prompts[start : start + self.settings.shard]
            missing = {}
            for metric, (key, extract) in measures.items():
                name = digest([*model, [asdict(p) for p in shard], key])
                path = self.settings.artifacts.features(name)
                files[metric].append(path)
                if not path.exists():
                    missing[path] = extract
            if missing:
                with _timed(seconds, "generate"):
                    samples = self._images(erased, shard, "generate", (start, len(prompts)))
                with _timed(seconds, "judge"):
                    for path, extract in missing.items():
                        write(path, save({"features": extract(samples).cpu().contiguous()}))
        with _timed(seconds, "judge"):
            measured = {m.metric: self._measure(m, task, files[m.metric]) for m in task.measures}
        if "blacked-out" in files:
            black = torch.cat([_features(path) for path in files["blacked-out"]])
            measured["blacked-out"] = rate([bool(b) for b in black])
        return measured

    def _extract(self, cell: Cell, measure: Measure) -> tuple[str, Extract]:
        """Return what a measure keeps of images, ``(n, width)`` with NaN for unscored, and its key."""
        ref = measure.evaluator
        if measure.reduce == "set":
            whole: SetScorer = self._evaluator(ref, "set")

            def features(samples: Sequence[Sample]) -> Tensor:
                with _contract(f"evaluator {ref.name}"):
                    found = whole.features(samples)
                if found.ndim != 2 or len(found) != len(samples):
                    expected = f"({len(samples)}, width)"
                    raise ContractError(
                        f"{ref.name} returned features {tuple(found.shape)}, expected {expected}"
                    )
                return found

            return whole.key, features
        score = self._scorer(ref)

        def scores(samples: Sequence[Sample]) -> Tensor:
            values = [[torch.nan if s.value is None else s.value] for s in score(samples)]
            return torch.tensor(values, dtype=torch.float64)

        evaluator: Evaluator = create("evaluators", ref)
        needs = "|".join(evaluator.assets()).split("|") if hasattr(evaluator, "assets") else ()
        weights = {name: cell.assets[name] for name in needs if name in cell.assets}
        return digest([asdict(ref), evaluator.card.version, weights]), scores

    def _measure(self, measure: Measure, task: Task, files: Sequence[Path]) -> Measurement:
        """Return a streamed task's measure from what was kept of its images."""
        if measure.reduce != "set":
            values = torch.cat([_features(path) for path in files]).flatten().tolist()
            scores = [Score(None if math.isnan(value) else value) for value in values]
            return _reduce(measure, scores, (), None)
        whole: SetScorer = self._evaluator(measure.evaluator, "set")
        n = unscored = 0

        def shards() -> Iterator[Tensor]:
            nonlocal n, unscored
            for path in files:
                features = _features(path)
                readable = features[features.isfinite().all(1)]
                n, unscored = n + len(readable), unscored + len(features) - len(readable)
                yield readable

        with _contract(f"evaluator {measure.evaluator.name}"):
            score = whole.score(shards(), task.prompts)
        if score.value is None:
            n, unscored = 0, n + unscored
        return Measurement(score.value, n, unscored, detail=score.detail)

    def _task(self, cell: Cell) -> Task:
        """Load a cell's task; its prompts must be those that were planned."""
        s = self.settings
        task = load_task(cell.task, cell.world, given=s.assets, prompts=s.prompts, judge=s.judge)
        if task.digest != cell.task_digest:
            raise SpecError(
                f"task {cell.task!r} has changed since it was planned: expected digest "
                f"{cell.task_digest}, got {task.digest}; give the same --prompts, --judge and --asset"
            )
        return task

    # ------------------------------------------------------------------ stages
    def model(self, cell: Cell) -> DiffusersModel:
        """Return a cell's base model, loaded once."""
        key = (cell.model, cell.dtype, cell.world)
        if key not in self._models:
            self._models[key] = load_model(
                cell.model,
                world=cell.world,
                device=self.settings.device,
                dtype=cell.dtype,
                batch_size=self.settings.batch_size,
            )
        return self._models[key]

    def _victim(self, cell: Cell, task: Task) -> Erased:
        """Return the erased model of a cell, which draws no minors where images may be unsafe."""
        erased = replace(self.erase(cell), unsafe=unsafe(cell.world, task.concept))
        refuse = may_mention_minors if erased.unsafe else None
        erased.model.refuse = self.model(cell).refuse = refuse
        return erased

    def erase(self, cell: Cell) -> Erased:
        """Return the erased model of a cell: from memory, from its delta, or made now."""
        if self._erased and self._erased[0] == cell.erase_key:
            return self._erased[1]
        base = self.model(cell)
        folder = self.settings.artifacts.erasure(cell.erase_key)
        card_path, delta_path = folder / "card.json", folder / "delta.safetensors"
        if card_path.exists() and delta_path.exists():
            card = json.loads(card_path.read_bytes())
            change = delta.from_file(delta_path)
        else:
            card, change = self._erase_now(cell, base)
            write(delta_path, delta.to_bytes(change))
            saved = json.dumps(card, indent=1).encode()
            write(card_path, saved)
            card = json.loads(saved)  # so that a made and a loaded card are equal
        if card.get("sampler_time"):  # such a method is in code, not in weights: apply it again
            key = _weights_key(cell, card["digest"], card["method"], card["concept"])
            erased = Erased(self._method(cell, base.copy()), key, card)
        else:
            erased = Erased(delta.apply(base, change), _weights_key(cell, card["digest"]), card)
        self._erased = (cell.erase_key, erased)
        self._memory.clear()  # the next cells draw with another model
        return erased

    def _method(self, cell: Cell, model: DiffusersModel) -> DiffusersModel:
        """Run the cell's method on a private copy of the base model."""
        method: Method = create("methods", cell.method)
        base = self.settings.artifacts.root / "work" / _weights_key(cell, delta.digest({}))
        ctx = replace(self._context(cell.erase_key), basedir=base)
        with _contract(f"method {cell.method.name}"):
            erased = method.erase(model, cell.concept, ctx)
        if not isinstance(erased, DiffusersModel):
            raise ContractError(
                f"method {cell.method.name} returned {type(erased).__name__}, expected a model"
            )
        return erased

    def _erase_now(self, cell: Cell, base: DiffusersModel) -> tuple[dict[str, Any], delta.Delta]:
        start = time.perf_counter()
        erased = self._method(cell, base.copy())
        taken = time.perf_counter() - start
        change = delta.diff(base, erased)
        return (
            {
                "method": asdict(cell.method),
                "concept": asdict(cell.concept),
                "base": {"model": cell.model, "revision": cell.revision, "dtype": cell.dtype},
                "seed": cell.seed,
                "digest": delta.digest(change),
                "tensors": len(change),
                "bytes": len(delta.to_bytes(change)),
                "zeroed": sum(_zeros(key, value) for key, value in change.items()),
                "seconds": round(taken, 3),
                "sampler_time": erased.guidance is not base.guidance or erased.screen is not None,
                "notes": erased.notes,
            },
            change,
        )

    def _attack(
        self, cell: Cell, task: Task, prompts: Sequence[Prompt], erased: Erased
    ) -> list[Adversarial]:
        """Return one adversarial per prompt; finished prompts come from the cache."""
        attack: Attack = create("attacks", cell.attack)
        shared = attack.threat.space in ("embedding", "weights")  # found once for all prompts
        workers = Workers() if shared else self._workers
        replay = Replay(self.settings.artifacts.attack(cell.attack_key), erased.model)
        done = replay.load(prompts)
        todo = {prompt.id: prompt for prompt in prompts if prompt.id not in done}
        before = len(done)

        def progress() -> None:
            finished = before + len(mine.intersection(done)) + workers.finished
            self.settings.progress("attack", finished, len(prompts))

        def finish(ids: Collection[str]) -> None:
            part = [prompt for name, prompt in todo.items() if name in ids]
            for found in self._attack_now(cell, task, part, erased, replay):
                done[found.prompt.id] = found
                progress()

        if todo:
            settings = replace(self.settings, batch_size=self._attacked_at_once)
            job = {"settings": settings.to_json(), "cell": asdict(cell)}
            with workers.share(job, list(todo)) as mine:
                progress()
                finish(mine)
            workers.wait(progress)
            done |= replay.load([p for name, p in todo.items() if name not in mine])
            if died := todo.keys() - done.keys() - mine:
                finish(died)
        if missing := [p.id for p in prompts if p.id not in done]:
            raise ContractError(
                f"attack {cell.attack.name} returned nothing for {len(missing)} prompts: {missing[:3]}"
            )
        return [done[prompt.id] for prompt in prompts]

    def attack(self, cell: Cell, ids: Collection[str]) -> Iterator[str]:
        """Attack some of a cell's prompts; yield the id of each when it is finished and kept."""
        task = self._task(cell)
        erased = self._victim(cell, task)
        replay = Replay(self.settings.artifacts.attack(cell.attack_key), erased.model)
        prompts = [prompt for prompt in task.prompts if prompt.id in ids]
        for found in self._attack_now(cell, task, prompts, erased, replay):
            yield found.prompt.id

    @property
    def _attacked_at_once(self) -> int:
        return max(1, self.settings.batch_size // self._workers.count)

    def _attack_now(
        self, cell: Cell, task: Task, prompts: Sequence[Prompt], erased: Erased, replay: Replay
    ) -> Iterator[Adversarial]:
        """Attack prompts in this process; keep and yield each as it is found."""
        attack: Attack = create("attacks", cell.attack)
        judge = task.measures[0]
        scorer = self._scorer(judge.evaluator)

        def criterion(samples: Sequence[Sample]) -> list[bool]:
            return [s.value is not None and s.value >= judge.threshold for s in scorer(samples)]

        victim: Model = erased.model
        original: Model = self.model(cell)
        if attack.threat.access == "black":
            victim = cast("Model", QueryOnly(erased.model.generate))
        if attack.threat.space == "weights":  # with the base's weights there is nothing to revive
            original = cast("Model", QueryOnly(original.generate))
        target = Target(victim, original, cell.concept, criterion)
        known = {prompt.id for prompt in prompts}
        name = f"attack {cell.attack.name}"
        with _contract(name):
            ctx = replace(self._context(cell.attack_key), batch_size=self._attacked_at_once)
            find = attack.prepare(target, ctx)
            for found in find(prompts):
                if not isinstance(found, Adversarial) or found.prompt.id not in known:
                    raise ContractError(f"{name} returned {found!r:.80}, expected an Adversarial")
                adversarial = _priced(found, erased.model)
                replay.put(adversarial)
                yield adversarial

    def _images(
        self,
        erased: Erased,
        prompts: Sequence[Prompt],
        stage: str,
        shard: tuple[int, int] | None = None,
    ) -> list[Sample]:
        """Return a sample per prompt; images come from memory, from the cache, or are made now.

        ``shard`` says that the prompts are part of a streamed task, from which on and of how many:
        such images are not kept in memory, and on disk only on the user's word.
        """
        model, memory = erased.model, {} if shard else self._memory
        before, total = shard or (0, len(prompts))
        keep = shard is None if self.settings.keep_images is None else self.settings.keep_images
        hide = erased.unsafe and not self.settings.keep_unsafe
        base = [erased.key, asdict(model.sampling)]
        keys = [digest([*base, p.text, p.seed, p.guidance]) for p in prompts]
        missing: list[int] = []
        for i, key in enumerate(keys):
            path = self.settings.artifacts.image(key)
            if key in memory:
                continue
            if keep and not hide and path.exists():
                memory[key] = _open(path.read_bytes())
            else:
                missing.append(i)
        self.settings.progress(stage, before + len(prompts) - len(missing), total)
        for start in range(0, len(missing), model.batch_size):
            part = missing[start : start + model.batch_size]
            images = model.generate([prompts[i] for i in part])
            for i, image in zip(part, images, strict=True):
                memory[keys[i]] = image
                if keep:
                    _keep(image, self.settings.artifacts.image(keys[i]), hide=hide)
            done = len(prompts) - len(missing) + start + len(part)
            self.settings.progress(stage, before + done, total)
        return [Sample(p, memory[key]) for p, key in zip(prompts, keys, strict=True)]

    def _replay(self, erased: Erased, found: Sequence[Adversarial]) -> list[Sample]:
        """Make the image of every adversarial again (an unchanged prompt's is there already)."""
        plain = [a for a in found if a.embedding is None and a.model is None and a.noise is None]
        samples = {
            s.prompt.id: s for s in self._images(erased, [a.prompt for a in plain], "replay")
        }
        others = [a for a in found if a.prompt.id not in samples]
        for start in range(0, len(others), erased.model.batch_size):
            part = others[start : start + erased.model.batch_size]
            samples |= {s.prompt.id: s for s in _replay_special(erased.model, part)}
            self.settings.progress("replay", len(samples), len(found))
        return [samples[a.prompt.id] for a in found]

    def _scorer(self, ref: Ref) -> Scorer:
        """Return the scoring function of an evaluator of single images, held to its contract."""
        return _checked(self._evaluator(ref, "image"), ref.name)

    def _evaluator(self, ref: Ref, scope: str) -> Any:
        """Return what an evaluator prepares, once."""
        key = digest(asdict(ref))
        if key not in self._evaluators:
            evaluator: Evaluator = create("evaluators", ref)
            if evaluator.scope != scope:
                raise ContractError(
                    f"evaluator {ref.name} has scope {evaluator.scope!r}, the task needs {scope!r}"
                )
            shared = self.settings.artifacts.root / "work" / "evaluators"
            with _contract(f"evaluator {ref.name}"):
                prepared = evaluator.prepare(replace(self._context(key), basedir=shared))
            self._evaluators[key] = prepared
        return self._evaluators[key]

    def samples(self, cell: Cell, n: int) -> list[tuple[Sample, Sample, Sample]]:
        """Return original, erased and attacked sample of the first ``n`` prompts, for a picture."""
        task = self._task(cell)
        prompts = task.prompts[: min(n, cell.prompts)]
        hide = unsafe(cell.world, task.concept)
        erased = replace(self.erase(cell), unsafe=hide)
        original = Erased(self.model(cell), _weights_key(cell, delta.digest({})), {}, hide)
        found = Replay(self.settings.artifacts.attack(cell.attack_key), erased.model).load(prompts)
        groups = (
            self._images(original, prompts, "picture"),
            self._images(erased, prompts, "picture"),
            self._replay(erased, [found.get(p.id, Adversarial(p)) for p in prompts]),
        )
        return list(zip(*groups, strict=True))

    def _context(self, key: str) -> Context:
        return Context(
            key,
            self.settings.device,
            self.settings.artifacts.root / "work" / key,
            self.settings.batch_size,
            self.settings.progress,
            asset=finder(self.settings.assets),
        )


def _priced(found: Adversarial, model: DiffusersModel) -> Adversarial:
    """Add to an adversarial's cost the denoiser's passes that its images took."""
    passes = found.cost.images * model.passes_per_image
    return replace(found, cost=found.cost + Cost(forward=passes))


def _replay_special(model: DiffusersModel, found: Sequence[Adversarial]) -> Iterator[Sample]:
    """Make images of adversarials that are more than a prompt, those of one kind in one batch."""
    kinds: dict[tuple[object, ...], list[Adversarial]] = {}
    for a in found:
        kind = (id(a.model), a.embedding is None, a.noise is None)
        kinds.setdefault(kind, []).append(a)
    for part in kinds.values():
        embeddings = [a.embedding for a in part if a.embedding is not None]
        noise = [a.noise for a in part if a.noise is not None]
        victim = cast("DiffusersModel", part[0].model) or model
        images = victim.generate(
            [a.prompt for a in part],
            embeddings=torch.stack(embeddings) if embeddings else None,
            noise=noise or None,
        )
        for a, image in zip(part, images, strict=True):
            yield Sample(a.prompt, image)


def _withheld(
    model: DiffusersModel, samples: Sequence[Sample], scores: Sequence[Score]
) -> list[Score]:
    """Return the scores, without those of texts that an attack wrote and the model does not draw."""
    nothing = Score(None, {"error": "not drawn: the text may mention minors"})
    pairs = zip(samples, scores, strict=True)
    return [nothing if model.refuses(s.prompt) else score for s, score in pairs]


def _weights_key(cell: Cell, *change: object) -> str:
    """Name a cell's base model after a change; equal images, equal name."""
    return digest([cell.model, cell.revision, cell.dtype, *change])


def _checked(inner: Scorer, name: str) -> Scorer:
    def score(samples: Sequence[Sample]) -> Sequence[Score]:
        if not samples:
            return []
        with _contract(f"evaluator {name}"):
            scores = inner(samples)
        if len(scores) != len(samples):
            raise ContractError(f"{name} returned {len(scores)} scores, expected {len(samples)}")
        if not all(isinstance(s, Score) for s in scores):
            raise ContractError(f"{name} returned {scores[0]!r:.60}, expected Score values")
        return scores

    return score


def _rows(
    cell: Cell,
    task: Task,
    own: Sequence[Score],
    scores: dict[str, Sequence[Score]],
    prompts: Sequence[Prompt],
    found: Sequence[Adversarial],
) -> Iterator[Row]:
    judge, attack = task.measures[0], cell.attack.name != "none"
    last = scores[judge.metric]
    for i, prompt in enumerate(prompts):
        hits = [_hit(s, judge.threshold) for s in ((own[i], last[i]) if attack else (own[i],))]
        yield Row(
            prompt.id,
            prompt.text,
            prompt.seed,
            prompt.guidance,
            success=True if any(hits) else (None if None in hits else False),
            own=own[i].value,
            attacked=last[i].value if attack else None,
            adversarial=found[i].prompt.text if attack else None,
            adversarial_seed=found[i].prompt.seed if attack else None,
            adversarial_noise=found[i].noise,
            beyond=_beyond(found[i]),
            cost=found[i].cost,
            trace=dict(found[i].trace),
            detail=dict(last[i].detail),
            own_detail=dict(own[i].detail) if attack else {},
            scores={m.metric: scores[m.metric][i].value for m in task.measures[1:]},
        )


def _beyond(found: Adversarial) -> str:
    changed = {"weights": found.model, "embedding": found.embedding, "noise": found.noise}
    return next((name for name, value in changed.items() if value is not None), "")


def _hit(score: Score, threshold: float) -> bool | None:
    return None if score.value is None else score.value >= threshold


def _reduce(
    measure: Measure, scores: Sequence[Score], rows: Sequence[Row], judge: Measure | None
) -> Measurement:
    if measure is judge and rows:
        return rate([row.success for row in rows])
    if measure.reduce == "rate":
        return rate([_hit(s, measure.threshold) for s in scores])
    return mean(scores)


def _blacked_out(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([[s.image.getbbox() is None] for s in samples])


def _features(path: Path) -> Tensor:
    try:
        return load_file(path)["features"]
    except (OSError, KeyError, SafetensorError) as exc:
        raise StoreError(f"{path} is damaged ({exc}); delete it and run again") from exc


def _zeros(key: str, value: torch.Tensor) -> int:
    if key.endswith("|zeros"):
        return len(value)
    if key.endswith("|bits"):
        return sum(int(byte).bit_count() for byte in value.tolist())
    return 0


def _keep(image: Image.Image, path: Path, *, hide: bool) -> None:
    """Write an image, or under another name, under which it is never read, what blurring leaves of it."""
    buffer = BytesIO()
    (blurred(image) if hide else image).save(buffer, "PNG")
    write(path.with_suffix(".blurred.png") if hide else path, buffer.getvalue())


def _open(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


@contextmanager
def _contract(who: str) -> Iterator[None]:
    """Turn whatever a plug-in raises into a PluginError that names it."""
    try:
        yield
    except BenchError:
        raise
    except Exception as exc:
        raise PluginError(f"{who} raised {type(exc).__name__}: {exc}") from exc


def environment(device: str) -> dict[str, str]:
    """Return what a reader needs to judge or repeat a result."""
    packages = ("torch", "diffusers", "transformers", "timm")
    git = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        **{name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": str(torch.get_num_threads()),
        "git": git.stdout.strip() or "not a checkout",
        "peak_memory_mb": str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024),
    }
