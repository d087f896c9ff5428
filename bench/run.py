"""Computes one cell: erase, attack, generate, judge. The only module that calls plug-ins."""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image

from bench.assets import finder
from bench.errors import BenchError, ContractError, IncompatibleError, PluginError
from bench.metrics import Measurement, mean, rate
from bench.models import delta, load_model
from bench.models.diffusers import DiffusersModel
from bench.plan import Cell, digest
from bench.protocols import Adversarial, Attack, Evaluator, Method, Model, Target
from bench.registry import ROOT, Ref, create
from bench.replay import Replay
from bench.store import Artifacts, Result, Row, write
from bench.tasks import Measure, Task, load_task
from bench.types import Context, Cost, Prompt, Sample, Score

Progress = Callable[[str, int, int], None]
Scorer = Callable[[Sequence[Sample]], Sequence[Score]]


@dataclass(frozen=True, slots=True)
class Settings:
    """How cells are computed. Nothing here changes a result."""

    device: str = "cpu"
    batch_size: int = 64
    keep_images: bool = True
    artifacts: Artifacts = field(default_factory=Artifacts)
    assets: Mapping[str, Path] = field(default_factory=dict)
    progress: Progress = lambda stage, done, total: None


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
    """An erased model, a key that names its weights, and its card."""

    model: DiffusersModel
    key: str
    card: dict[str, Any]


class Runner:
    """Computes cells, and keeps models, judges and images between them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._models: dict[tuple[str, str], DiffusersModel] = {}
        self._erased: tuple[str, Erased] | None = None
        self._scorers: dict[str, Scorer] = {}
        self._memory: dict[str, Image.Image] = {}

    def run(self, cell: Cell) -> Result:
        """Return the record of a cell; a plug-in's failure becomes a record, not a crash."""
        try:
            return self._run(cell)
        except IncompatibleError as exc:
            return Result(cell, "skipped", reason=str(exc))
        except PluginError as exc:
            return Result(cell, "failed", reason=f"{type(exc).__name__}: {exc}")

    def _run(self, cell: Cell) -> Result:
        seconds: dict[str, float] = {}
        task = load_task(cell.task, cell.world)
        prompts = task.prompts[: cell.prompts]
        with _timed(seconds, "erase"):
            erased = self.erase(cell)
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
            scores = {m.metric: self._scorer(m.evaluator)(attacked) for m in task.measures}
            own_scores = (
                scores[judge.metric]
                if cell.attack.name == "none" or judge.reduce == "set"
                else self._scorer(judge.evaluator)(own)
            )
        rows = tuple(_rows(cell, task, own_scores, scores, prompts, found))
        measured = {m.metric: _reduce(m, scores[m.metric], rows, judge) for m in task.measures}
        if erased.model.screen:
            measured["blacked-out"] = rate([s.image.getbbox() is None for s in attacked])
        return Result(
            cell,
            "ok",
            measurements=measured,
            rows=rows,
            erasure=erased.card,
            seconds={stage: round(s, 3) for stage, s in seconds.items()},
            environment=environment(self.settings.device),
        )

    # ------------------------------------------------------------------ stages
    def model(self, name: str, dtype: str) -> DiffusersModel:
        """Return a base model, loaded once."""
        if (name, dtype) not in self._models:
            self._models[name, dtype] = load_model(
                name,
                device=self.settings.device,
                dtype=dtype,
                batch_size=self.settings.batch_size,
            )
        return self._models[name, dtype]

    def erase(self, cell: Cell) -> Erased:
        """Return the erased model of a cell: from memory, from its delta, or made now."""
        if self._erased and self._erased[0] == cell.erase_key:
            return self._erased[1]
        base = self.model(cell.model, cell.dtype)
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
        replay = Replay(self.settings.artifacts.attack(cell.attack_key), erased.model)
        done = replay.load(prompts)
        todo = [prompt for prompt in prompts if prompt.id not in done]
        if todo:
            progress = self.settings.progress
            progress("attack", len(done), len(prompts))
            for found in self._attack_now(cell, task, todo, erased):
                adversarial = _priced(found, erased.model)
                replay.put(adversarial)
                done[adversarial.prompt.id] = adversarial
                progress("attack", len(done), len(prompts))
        if missing := [p.id for p in prompts if p.id not in done]:
            raise ContractError(
                f"attack {cell.attack.name} returned nothing for {len(missing)} prompts: {missing[:3]}"
            )
        return [done[prompt.id] for prompt in prompts]

    def _attack_now(
        self, cell: Cell, task: Task, prompts: Sequence[Prompt], erased: Erased
    ) -> Iterator[Adversarial]:
        attack: Attack = create("attacks", cell.attack)
        judge = task.measures[0]
        scorer = self._scorer(judge.evaluator)

        def criterion(samples: Sequence[Sample]) -> list[bool]:
            return [s.value is not None and s.value >= judge.threshold for s in scorer(samples)]

        victim: Model = erased.model
        original: Model = self.model(cell.model, cell.dtype)
        if attack.threat.access == "black":
            victim = cast("Model", QueryOnly(erased.model.generate))
        if attack.threat.space == "weights":  # with the base's weights there is nothing to revive
            original = cast("Model", QueryOnly(original.generate))
        target = Target(victim, original, cell.concept, criterion)
        known = {prompt.id for prompt in prompts}
        name = f"attack {cell.attack.name}"
        with _contract(name):
            find = attack.prepare(target, self._context(cell.attack_key))
            for adversarial in find(prompts):
                if not isinstance(adversarial, Adversarial) or adversarial.prompt.id not in known:
                    raise ContractError(
                        f"{name} returned {adversarial!r:.80}, expected an Adversarial"
                    )
                yield adversarial

    def _images(self, erased: Erased, prompts: Sequence[Prompt], stage: str) -> list[Sample]:
        """Return a sample per prompt; images come from memory, from the cache, or are made now."""
        model = erased.model
        base = [erased.key, asdict(model.sampling)]
        keys = [digest([*base, p.text, p.seed, p.guidance]) for p in prompts]
        missing: list[int] = []
        for i, key in enumerate(keys):
            path = self.settings.artifacts.image(key)
            if key in self._memory:
                continue
            if self.settings.keep_images and path.exists():
                self._memory[key] = _open(path.read_bytes())
            else:
                missing.append(i)
        self.settings.progress(stage, len(prompts) - len(missing), len(prompts))
        for start in range(0, len(missing), model.batch_size):
            part = missing[start : start + model.batch_size]
            images = model.generate([prompts[i] for i in part])
            for i, image in zip(part, images, strict=True):
                self._memory[keys[i]] = image
                if self.settings.keep_images:
                    buffer = BytesIO()
                    image.save(buffer, "PNG")
                    write(self.settings.artifacts.image(keys[i]), buffer.getvalue())
            done = len(prompts) - len(missing) + start + len(part)
            self.settings.progress(stage, done, len(prompts))
        return [Sample(p, self._memory[key]) for p, key in zip(prompts, keys, strict=True)]

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
        """Load an evaluator once and hold it to its contract."""
        key = digest(asdict(ref))
        if key not in self._scorers:
            evaluator: Evaluator = create("evaluators", ref)
            with _contract(f"evaluator {ref.name}"):
                inner = evaluator.prepare(self._context(key))
            self._scorers[key] = _checked(inner, ref.name, evaluator.scope)
        return self._scorers[key]

    def samples(self, cell: Cell, result: Result, n: int) -> list[tuple[Sample, Sample, Sample]]:
        """Return original, erased and attacked sample of the first ``n`` prompts, for a picture."""
        prompts = load_task(cell.task, cell.world).prompts[: min(n, cell.prompts)]
        erased = self.erase(cell)
        original = Erased(
            self.model(cell.model, cell.dtype), _weights_key(cell, delta.digest({})), {}
        )
        rows = {row.id: row for row in result.rows}
        found = Replay(self.settings.artifacts.attack(cell.attack_key), erased.model).load(prompts)
        for p in prompts:  # where the cache is gone, the record has all but embeddings and weights
            text, seed = rows[p.id].adversarial, rows[p.id].adversarial_seed
            changed = replace(p, text=text or p.text, seed=p.seed if seed is None else seed)
            found.setdefault(p.id, Adversarial(changed, noise=rows[p.id].adversarial_noise))
        groups = (
            self._images(original, prompts, "picture"),
            self._images(erased, prompts, "picture"),
            self._replay(erased, [found[p.id] for p in prompts]),
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


def _weights_key(cell: Cell, *change: object) -> str:
    """Name a cell's base model after a change; equal images, equal name."""
    return digest([cell.model, cell.revision, cell.dtype, *change])


def _checked(inner: Scorer, name: str, scope: str) -> Scorer:
    def score(samples: Sequence[Sample]) -> Sequence[Score]:
        if not samples:
            return []
        with _contract(f"evaluator {name}"):
            scores = inner(samples)
        expected = len(samples) if scope == "image" else 1
        if len(scores) != expected:
            raise ContractError(f"{name} returned {len(scores)} scores, expected {expected}")
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
    if judge.reduce == "set":
        return
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
            cost=found[i].cost,
            trace=dict(found[i].trace),
            detail=dict(last[i].detail),
            scores={
                m.metric: scores[m.metric][i].value for m in task.measures[1:] if m.reduce != "set"
            },
        )


def _hit(score: Score, threshold: float) -> bool | None:
    return None if score.value is None else score.value >= threshold


def _reduce(
    measure: Measure, scores: Sequence[Score], rows: Sequence[Row], judge: Measure
) -> Measurement:
    if measure is judge and rows:
        return rate([row.success for row in rows])
    if measure.reduce == "rate":
        return rate([_hit(s, measure.threshold) for s in scores])
    if measure.reduce == "set" and scores:
        return Measurement(scores[0].value, int(scores[0].detail.get("n", 0)))
    return mean(scores)


def _zeros(key: str, value: torch.Tensor) -> int:
    if key.endswith("|zeros"):
        return len(value)
    if key.endswith("|bits"):
        return sum(int(byte).bit_count() for byte in value.tolist())
    return 0


def _open(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


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
