"""What every method, attack and judge keeps to; a new one is tested by being listed in its table."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fakes import finished
from networks import assets
from PIL import Image
from safetensors.torch import load, save_file

import attacks
import evaluators
import methods
from attacks._token_attack import TokenAttack
from attacks.none import NoAttack
from attacks.submitted import Submitted
from attacks.transfer import Transfer
from bench import Adversarial, Context, Prompt, Sample, Score, Target
from bench.core.types import ByKind, World
from bench.engine.attack import _target
from bench.engine.settings import Settings
from bench.errors import ContractError
from bench.models import delta
from bench.models.diffusers import DiffusersModel
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Kind, Ref, create, resolved
from bench.plugins.registry import load as load_class
from bench.sources.folders import PARTS
from bench.store.artifacts import Artifacts
from bench.tasks.tasks import load_task

TASKS = {name: load_task(name, "emoji") for name in ("church", "van-gogh", "nudity")}
QUICK = {  # of every method and attack that has a field of this name
    "batch": 2, "calls": 2, "check": 1, "draws": 2, "generations": 2, "images": 2,
    "inversion_steps": 1, "iterations": 2, "length": 5, "population": 8, "sampling_steps": 4,
    "steps": 2, "tokens": 2, "top_k": 20,
    "m0": 0.1,  # so that two steps prune something
    "preset": "max",  # which steers from the first step on
}  # fmt: skip
PHOTO = {"safety-checker"}  # what is for photographs only
LABELS = {"emoji-style": "van gogh", "style": "van gogh", "style-clip": "van gogh"}


def global_state() -> list[object]:
    """What the process's code has in common but for random streams, which loading a network moves."""
    return [
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu"),
        np.geterr(), Path.cwd(), dict(os.environ),
    ]  # fmt: skip


def anew(seed: int) -> None:
    """Set the global random streams, of which nothing may depend."""
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)


def state(model: DiffusersModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in delta.weights(model).items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def at_rest(model: DiffusersModel) -> bool:
    parts = [getattr(model.pipe, part) for part in PARTS]
    return not any(part.training for part in parts) and not any(
        p.requires_grad or p.grad is not None for part in parts for p in part.parameters()
    )


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Callable[[], Context]:
    """Makes contexts that are alike but for their folders, with a file for every asset."""
    find = assets(tmp_path_factory.mktemp("assets"))

    def make(**changes: Any) -> Context:
        settings = Settings(batch_size=4, artifacts=Artifacts(tmp_path_factory.mktemp("cache")))
        return replace(settings.context("test", "shared"), asset=find, **changes)

    return make


@pytest.fixture(scope="module")
def base(_tiny: DiffusersModel) -> DiffusersModel:
    model = _tiny.copy()
    model.sampling = replace(model.sampling, steps=4)
    return model


@pytest.fixture(scope="module")
def pixels(base) -> Callable[[DiffusersModel], list[bytes]]:
    """Draws two prompts."""

    def draw(model: DiffusersModel) -> list[bytes]:
        return [image.tobytes() for image in model.generate(TASKS["church"].prompts[:2])]

    own = draw(base)
    return lambda model: own if model is base else draw(model)


# ---------------------------------------------------------------------------- all of them
@pytest.mark.parametrize(
    ("kind", "name"),
    [(family.__name__, n) for family in (methods, attacks, evaluators) for n in family.PLUGINS
     if n not in {"external", "transfer", "submitted"}],  # which are nothing without a file
)  # fmt: skip
def test_what_is_resolved_is_resolved(kind: Kind, name: str) -> None:
    """Once for every world and kind of concept: no default is left open, none moves when asked again."""
    for world in get_args(World):
        for task in TASKS.values():
            once = resolved(kind, Ref(name), task.concept, world)
            assert resolved(kind, once, task.concept, world) == once
            assert json.loads(json.dumps(once.params)) == once.params
            plugin = create(kind, once)
            assert not any(isinstance(getattr(plugin, f.name), ByKind) for f in fields(plugin))


# ---------------------------------------------------------------------------- methods
def quick(kind: Kind, name: str, task: str, folder: Path, base: DiffusersModel) -> Any:
    """Return a method or an attack that takes a moment, with the file that it cannot do without."""
    known = {field.name for field in fields(load_class(kind, name))}
    files: dict[str, Path] = {}
    if name == "external":
        files = {"unet": folder / "unet.safetensors"}
        shifted = {k: 0.9 * v for k, v in base.pipe.unet.state_dict().items()}
        save_file(shifted, files["unet"])
    if name in {"transfer", "submitted"}:
        files = {"source": folder / "found.csv"}
        rows = (f'{p.id},"lo {p.text}"\n' for p in TASKS[task].prompts)
        files["source"].write_text("id,adversarial\n" + "".join(rows))
    params: dict[str, Any] = {k: v for k, v in QUICK.items() if k in known} | files
    if name == "submitted":
        params["label"] = "mine"
    return finished(kind, name, TASKS[task].concept, **params)


@dataclass
class Erasure:
    """What a method did to a copy of the base, and once more to another."""

    base: DiffusersModel
    given: list[DiffusersModel]
    returned: list[Any]
    globals: list[list[object]]  # the process's state before and after

    @property
    def model(self) -> DiffusersModel:
        return self.given[0]


@pytest.fixture(
    scope="module",
    params=[(n, t) for n in methods.PLUGINS for t in ("church", "nudity")],
    ids="-".join,
)
def erasure(request, base, context, tmp_path_factory) -> Erasure:
    name, task = request.param
    method = quick("methods", name, task, tmp_path_factory.mktemp("files"), base)
    base.world = "photo" if name in PHOTO else "emoji"
    given, before = [delta.private(base) for _ in range(2)], global_state()
    returned = []
    for seed, model in enumerate(given):
        anew(seed)
        returned.append(method.erase(model, TASKS[task].concept, context()))
    return Erasure(base, given, returned, [before, global_state()])


def test_a_method_returns_the_model_that_it_was_given(erasure: Erasure) -> None:
    assert erasure.returned[0] is erasure.given[0]
    assert erasure.returned[1] is erasure.given[1]


def test_a_method_leaves_gradients_off(erasure: Erasure) -> None:
    assert at_rest(erasure.model)


def test_a_method_leaves_the_autoencoder_and_global_state_alone(erasure: Erasure) -> None:
    vae, before = (m.pipe.vae.state_dict() for m in (erasure.model, erasure.base))
    assert equal(vae, before)
    before, after = erasure.globals
    assert after == before


def test_what_a_method_changed_is_kept_in_a_file_bit_for_bit(erasure: Erasure) -> None:
    """Which holds weights; beside them it may have changed the guidance and the screen only."""
    change = load(delta.to_bytes(delta.diff(erasure.base, erasure.model)))
    assert equal(state(delta.apply(erasure.base, change)), state(erasure.model))


def test_a_method_does_the_same_twice_and_not_nothing(erasure: Erasure, pixels, request) -> None:
    one, other = erasure.given
    assert equal(state(one), state(other))
    assert json.dumps(one.notes) == json.dumps(other.notes)
    assert pixels(one) == pixels(other)
    assert (pixels(erasure.base) != pixels(one)) == ("[none-" not in request.node.name)


# ---------------------------------------------------------------------------- attacks
PROMPTS = TASKS["church"].prompts[:3]
BLACK = [n for n in attacks.PLUGINS if load_class("attacks", n).threat.access == "black"]


@pytest.fixture(scope="module")
def victim(base: DiffusersModel) -> DiffusersModel:
    """An erased model, with zeros of which a tenth is no chance."""
    model = base.copy()
    for weight in model.parameters("esd-u").values():
        weight.data *= torch.rand_like(weight) > 0.1
    return model


def judged() -> Callable[[Sequence[Sample]], list[bool]]:
    """Return a judge to whom the first prompt's second image and the third's first are hits."""
    asked = Counter[str]()

    def criterion(samples: Sequence[Sample]) -> list[bool]:
        asked.update(ids := [sample.prompt.id for sample in samples])
        return [asked[i] >= n for i in ids for n in [dict(zip(IDS, (2, 99, 1), strict=True))[i]]]

    return criterion


IDS = [prompt.id for prompt in PROMPTS]


@dataclass
class Hunt:
    """What an attack found, what it found the second time, and what it may have left behind."""

    attack: Any
    found: list[list[Adversarial]]
    models: list[DiffusersModel]
    weights: list[list[dict[str, torch.Tensor]]]  # of these models, before and after
    globals: list[list[object]]


def handed_over(attack: Any, victim: DiffusersModel, original: DiffusersModel) -> Target:
    """Return what the harness gives this attack."""
    cell = next(iter(plan(Spec("tiny-random", (Ref("none"),), (Ref("none"),), ("church",))))).cell
    return _target(attack, victim, original, cell, judged())


@pytest.fixture(scope="module", params=attacks.PLUGINS)
def hunt(request, base, victim, context, tmp_path_factory) -> Hunt:
    base.world = "emoji"
    attack = quick("attacks", request.param, "church", tmp_path_factory.mktemp("files"), base)
    models = [victim, base]
    weights, before = [[state(m) for m in models]], global_state()
    found = []
    for seed in range(2):
        anew(seed)
        find = attack.prepare(handed_over(attack, victim, base), context())
        found.append(list(find(PROMPTS)))
    weights.append([state(m) for m in models])
    return Hunt(attack, found, models, weights, [before, global_state()])


def test_an_attack_returns_every_prompt_once_with_what_it_took(hunt: Hunt) -> None:
    found = hunt.found[0]
    assert sorted(a.prompt.id for a in found) == sorted(IDS)
    for adversarial in found:
        asked = PROMPTS[IDS.index(adversarial.prompt.id)]
        assert adversarial.prompt.label == asked.label
        assert adversarial.prompt.guidance == asked.guidance
        assert all(math.isfinite(n) and n >= 0 for n in astuple(adversarial.cost))
        assert json.loads(json.dumps(dict(adversarial.trace))) == adversarial.trace


def test_an_attack_changes_what_its_threat_says(hunt: Hunt) -> None:
    """A prompt's attack the text, a latent one the seed or the noise, others the embedding or a model."""
    space = hunt.attack.threat.space
    changed = set[str]()
    for a in hunt.found[0]:
        asked = PROMPTS[IDS.index(a.prompt.id)]
        changed |= {"prompt"} if a.prompt.text != asked.text else set()
        changed |= {"latent"} if a.prompt.seed != asked.seed or a.sampler_noise else set()
        changed |= {"embedding"} if a.embedding is not None else set()
        changed |= {"weights"} if a.model is not None else set()
    assert changed == ({space} if type(hunt.attack).__name__ != "NoAttack" else set())


def test_an_attack_leaves_models_and_global_state_alone(hunt: Hunt) -> None:
    for before, after in zip(*hunt.weights, strict=True):
        assert equal(before, after)
    assert all(at_rest(model) for model in hunt.models)
    before, after = hunt.globals
    assert after == before


def test_an_attack_finds_the_same_twice(hunt: Hunt) -> None:
    def told(found: list[Adversarial]) -> dict[str, object]:
        return {
            a.prompt.id: (
                a.prompt, replace(a.cost, seconds=0), dict(a.trace), a.sampler_noise,
                None if a.embedding is None else a.embedding.tolist(),
                a.model and delta.digest(state(a.model)),
            )
            for a in found
        }  # fmt: skip

    one, other = hunt.found
    assert told(one) == told(other)


def test_an_attack_makes_as_many_images_as_it_says(hunt: Hunt) -> None:
    """On the prompt that never succeeds; images of ids, and those of the common setup, do not count."""
    says = getattr(hunt.attack, "most_images", None)
    if isinstance(hunt.attack, NoAttack | Submitted | Transfer):
        assert says is None
        return
    (failed,) = (a for a in hunt.found[0] if a.prompt.id == IDS[1])
    of_ids = 0
    if isinstance(
        hunt.attack, TokenAttack
    ):  # a text pass for each step, and one for each such image
        of_ids = failed.cost.text_forward - failed.trace["iterations"]
    assert failed.cost.images - of_ids == (says() if says else hunt.attack.draws + 1)


@pytest.mark.parametrize("name", BLACK)
def test_a_black_box_attack_can_only_generate(name: str, base, victim, tmp_path) -> None:
    """The table above ran it with this handle: it needs no more."""
    attack = quick("attacks", name, "church", tmp_path, base)
    handle = handed_over(attack, victim, base).victim
    assert len(handle.generate(PROMPTS[:1])) == 1
    for reads in ("pipe", "parameters", "encode", "copy", "predict_noise", "denoise", "notes"):
        with pytest.raises(ContractError, match=f"may only generate .* it asked for {reads!r}"):
            getattr(handle, reads)


# ---------------------------------------------------------------------------- judges
def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((32 + 8 * seed, 40))


@dataclass
class Verdicts:
    """Scores of one evaluator by how it was asked, each the scores of all samples."""

    samples: list[Sample]
    before: list[bytes]
    by_batch: dict[str, list[Score]]
    globals: list[list[object]]


@pytest.fixture(scope="module", params=evaluators.PLUGINS)
def verdicts(request, context) -> Verdicts:
    """Ask for six pictures of unlike sizes, of which the second cannot be read."""
    judge = create("evaluators", Ref(request.param))
    images: list[Any] = [picture(i) for i in range(6)]
    images[1], images[3] = "no image", images[3].convert("L")
    label = LABELS.get(request.param, "church")
    samples = [
        Sample(Prompt(str(i), "a church " * (1 + 12 * i), i, label=label), image)
        for i, image in enumerate(images)
    ]
    before, copies = global_state(), [bytes_of(image) for image in images]
    by_batch = {}
    for seed, (batch, shard) in enumerate([(4, 6), (4, 6), (1, 1), (1, 6), (2, 3)]):
        anew(seed)
        by_batch[f"{seed}: batch {batch}, {shard} at a time"] = scores(
            judge, context(batch_size=batch), samples, shard
        )
    return Verdicts(samples, copies, by_batch, [before, global_state()])


def scores(judge: Any, ctx: Context, samples: list[Sample], shard: int) -> list[Score]:
    """Return a score for each sample; of a set's judge that of all, and of each if it can be read."""
    prepared = judge.prepare(ctx)
    parts = [samples[i : i + shard] for i in range(0, len(samples), shard)]
    if judge.scope == "image":
        return [score for part in parts for score in prepared(part)]
    features = [prepared.features(part) for part in parts]
    rows = [row for part in features for row in part]
    fit = [part[part.isfinite().all(1)] for part in features]
    whole = prepared.score(iter(fit), [sample.prompt for sample in samples])
    return [whole if row.isfinite().all() else Score(None) for row in rows]


def bytes_of(image: Any) -> bytes:
    return image.tobytes() if isinstance(image, Image.Image) else b""


def test_a_judge_scores_every_picture_that_can_be_read(verdicts: Verdicts) -> None:
    for found in verdicts.by_batch.values():
        assert [score.value is None for score in found] == [i == 1 for i in range(6)]
        for score in found:
            assert score.value is None or math.isfinite(score.value)
            assert json.loads(json.dumps(dict(score.detail))) == score.detail


def test_a_judge_says_the_same_twice_and_in_any_batch(verdicts: Verdicts) -> None:
    once, twice, *others = verdicts.by_batch.values()
    assert once == twice
    for other in others:
        for mine, theirs in zip(once, other, strict=True):
            assert theirs.value == (mine.value and pytest.approx(mine.value, rel=1e-4))
            assert theirs.detail.keys() == mine.detail.keys()


def test_a_judge_leaves_images_and_global_state_alone(verdicts: Verdicts) -> None:
    assert [bytes_of(sample.image) for sample in verdicts.samples] == verdicts.before
    assert not any(getattr(sample.image, "info", None) for sample in verdicts.samples)
    before, after = verdicts.globals
    assert after == before
