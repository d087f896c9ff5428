"""Plug-ins that misbehave: each spoils its own cell, says so in words, and nothing else."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

import attacks
import evaluators
import methods
from bench import Adversarial, Cost, Guidance, Prompt, Sample, SamplerNoise, Score
from bench.engine.guard import _digest, guard
from bench.engine.judge import Judges
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.errors import PluginError
from bench.models.delta import weights
from bench.models.diffusers import DiffusersModel
from bench.plan.plan import Job, plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.store.artifacts import Artifacts
from bench.store.record import Record
from bench.tasks.tasks import Measure

pytestmark = pytest.mark.usefixtures("few_steps")

FAMILIES = {"method": methods, "attack": attacks, "judge": evaluators}


def job_of(**plugins: str) -> Job:
    method, attack = (Ref(plugins.get(k, "none")) for k in ("method", "attack"))
    spec = Spec("tiny-random", (method,), (attack,), ("church",), limit=2)
    return next(iter(plan(replace(spec, judge=plugins.get("judge", "")))))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(batch_size=8, artifacts=Artifacts(tmp_path / "cache"))


@pytest.fixture
def run(settings: Settings, monkeypatch) -> Callable[..., Record]:
    """Run a cell whose method, attack or judge does something; the runner is kept."""

    def call(family: str, what: Callable[..., Any], cls: type = fakes.Does) -> Record:
        monkeypatch.setitem(FAMILIES[family].PLUGINS, "fake", f"fakes:{cls.__name__}")
        monkeypatch.setattr(fakes.Does, "what", staticmethod(what), raising=False)
        call.runner = Runner(settings)
        return call.runner.run(job_of(**{family: "fake"}))

    return call


def stop(*_: object) -> None:
    raise SystemExit(7)


def notes(value: object) -> Callable[[DiffusersModel], None]:
    return lambda model: model.notes.update(found=value)


def nan(model: DiffusersModel) -> None:
    model.pipe.unet.conv_in.weight.data[0] = float("nan")


def each(**change: object) -> Callable[..., list[Adversarial]]:
    return lambda target, prompts: [replace(Adversarial(p), **change) for p in prompts]


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Bare(BaseException):
    """No Exception, as asyncio's CancelledError is none."""


def raises(what: type[BaseException]) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise what

    return call


DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]

WRONG: dict[str, tuple[str, Callable[..., Any], str]] = {
    "exit in a method": ("method", stop, "method fake raised SystemExit: 7"),
    "exit in an attack": ("attack", stop, "attack fake raised SystemExit: 7"),
    "exit in a judge": ("judge", stop, "evaluator fake raised SystemExit: 7"),
    "a tensor in notes": ("method", notes(torch.ones(2)), "method fake, notes: expected plain"),
    "weights that are not finite": ("method", nan, "not finite (nan or inf): unet.conv_in.weight"),
    "no guidance": ("method", lambda m: setattr(m, "guidance", 3), "method fake set guidance 3"),
    "a hook": (
        "method",
        lambda m: m.pipe.unet.register_forward_hook(lambda *_: None) and None,
        "method fake: a hook of unet is not the base's",
    ),
    "a screen that raises": (
        "method", lambda m: setattr(m, "screen", lambda images: 1 / 0), "method fake raised Zero",
    ),
    "no generator": ("attack", lambda *_: 5, "attack fake raised TypeError: 'int' object is not"),
    "no adversarial": ("attack", lambda *_: ["x"], "attack fake returned 'x', expected an Adver"),
    "twice": ("attack", lambda _, ps: [Adversarial(ps[0])] * 2, "is returned twice"),
    "not asked for": (
        "attack", lambda _, ps: [Adversarial(replace(ps[0], id="z"))], "'z': it was not asked for",
    ),
    "one too few": ("attack", lambda _, ps: [Adversarial(ps[0])], "returned nothing for 1 prompts"),
    "no text": (
        "attack", lambda _, ps: [Adversarial(replace(p, text=None)) for p in ps], "expected a text",
    ),
    "no seed": (
        "attack", lambda _, ps: [Adversarial(replace(p, seed=2**63)) for p in ps], "2**63 - 1, got",
    ),
    "no guidance scale": (
        "attack",
        lambda _, ps: [Adversarial(replace(p, guidance=float("nan"))) for p in ps],
        "expected a finite guidance, got nan",
    ),
    "wrong embedding": ("attack", each(embedding=torch.ones(3, 4)), "of shape (32, 32), got (3, 4)"),
    "no embedding": ("attack", each(embedding="x"), "of shape (32, 32), got ()"),
    "no model": ("attack", each(model="x"), "expected a copy of the victim, got 'x'"),
    "no noise": ("attack", each(sampler_noise=1.0), "expected SamplerNoise, got 1.0"),
    "no cost": ("attack", each(cost=Cost(seconds=float("nan"))), "expected a Cost of finite"),
    "no array of torch": ("attack", each(embedding=np.ones((32, 32))), "got (32, 32) in a ndarray"),
    "no finite noise": (
        "attack", each(sampler_noise=SamplerNoise(float("nan"))), "expected finite noise from 0, got",
    ),
    "another space": ("attack", each(embedding=torch.ones(32, 32)), "changed the embedding, its threat"),
    "another seed": (
        "attack", lambda _, ps: [Adversarial(replace(p, seed=p.seed + 7)) for p in ps],
        "changed the latent, its threat says prompt",
    ),
    "another guidance": (
        "attack", lambda _, ps: [Adversarial(replace(p, guidance=1.0)) for p in ps],
        "changed the scale of guidance: expected the prompt's",
    ),
    "another label": (
        "attack", lambda _, ps: [Adversarial(replace(p, label="x")) for p in ps], "got 'x'",
    ),
    "half a character": (
        "attack", lambda _, ps: [Adversarial(replace(p, text="\ud800")) for p in ps], "surrogates",
    ),
    "a truth as seed": (
        "attack", lambda _, ps: [Adversarial(replace(p, seed=True)) for p in ps], "got True",
    ),
    "a negative cost": ("attack", each(cost=Cost(images=-5)), "expected a Cost of finite numbers"),
    "a trace without end": ("attack", each(trace={"x": DEEP}), "trace: expected plain"),
    "no text in its error": ("method", raises(Mute), "raised Mute: (its text cannot be read)"),
    "more than an exception": ("judge", raises(Bare), "evaluator fake raised Bare"),
    "no notes": ("method", lambda m: setattr(m, "notes", None), "method fake raised TypeError"),
    "half a character in a detail": (
        "judge", lambda s: [Score(1.0, {"x": "\ud800"})] * len(s), "detail: expected plain",
    ),
    "a tensor in a trace": ("attack", each(trace={"x": torch.ones(2)}), "trace: expected plain"),
    "a text as score": ("judge", lambda s: [Score("1")] * len(s), "returned the score '1', exp"),
    "two": ("judge", lambda s: [Score(2.0)] * len(s), "gives the score 2, but a score of which a rate"),
    "below nothing": ("judge", lambda s: [Score(-1.0)] * len(s), "gives the score -1"),
    "a tensor as score": ("judge", lambda s: [Score(torch.ones(()))] * len(s), "returned the score"),
    "no scores": ("judge", lambda s: [1.0] * len(s), "returned 1.0, expected Score values"),
    "a tensor in details": (
        "judge", lambda s: [Score(1.0, {"x": torch.ones(2)})] * len(s), "detail: expected plain",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_a_plugin_does_wrong_is_said_and_its_cell_fails(run, name: str) -> None:
    family, what, reason = WRONG[name]
    result = run(family, what)
    assert (result.status, result.measurements) == ("failed", {})
    assert reason in result.reason
    assert "fake" in result.reason
    if family != "judge":
        assert call_again(run).status == "ok"


def call_again(run: Any) -> Record:
    return run.runner.run(job_of())


def test_no_memory_fails_the_cell_and_the_matrix_goes_on(settings, monkeypatch) -> None:
    runner = Runner(settings)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("bench.models.delta.apply", full)
        result = runner.run(job_of())
    assert (result.status, result.reason[:35]) == ("failed", "out of memory: CUDA out of memory; ")
    assert runner.run(job_of()).status == "ok"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupt_stops_the_run(run, family: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(family, interrupt)


def zero(model: DiffusersModel) -> None:
    model.pipe.unet.conv_out.weight.data.mul_(2)


def swap(model: DiffusersModel) -> None:
    weight = model.pipe.unet.conv_in.weight
    weight.data.copy_(weight.data.flip(0))


def blur(model: DiffusersModel) -> None:
    model.pipe.vae.decoder.conv_out.weight.data.mul_(0.5)


def guide(model: DiffusersModel) -> None:
    model.guidance = Guidance(("church",))


def hook(model: DiffusersModel) -> None:
    model.pipe.unet.register_forward_hook(lambda m, i, out: None)


def words(model: DiffusersModel) -> None:
    model.pipe.tokenizer.add_tokens(["zzzz"])


def victim(target: Any, _: object) -> DiffusersModel:
    return target.victim


def original(target: Any, _: object) -> DiffusersModel:
    return target.original


def behind(target: Any, _: object) -> DiffusersModel:
    """A black box's model: nothing hides from somebody who digs."""
    return target.victim._QueryOnly__generate.__self__


def process(model: DiffusersModel) -> None:
    model.pipe.unet.set_attn_processor(AttnProcessor())


def dilate(model: DiffusersModel) -> None:
    model.pipe.unet.conv_out.dilation = model.pipe.unet.conv_out.padding = (2, 2)


def scale(model: DiffusersModel) -> None:
    model.pipe.vae.register_to_config(scaling_factor=3.0)


def darken(model: DiffusersModel) -> None:
    model.generate = lambda prompts: [Image.new("RGB", (32, 32)) for _ in prompts]


POISON = [(victim, c) for c in (zero, swap, blur, guide, hook, words)]
POISON += [(victim, c) for c in (process, dilate, scale, darken)]
POISON += [(original, zero), (behind, zero)]


@pytest.mark.parametrize(("of", "change"), POISON)
def test_an_attack_that_changes_a_model_poisons_nothing(
    run, settings, monkeypatch, change, of
) -> None:
    clean = Runner(replace(settings, artifacts=Artifacts(settings.artifacts.root / "x")))
    expected = clean.run(job_of())
    attacked: list[object] = []
    monkeypatch.setitem(attacks.PLUGINS, "fake", "fakes:Does")
    cell = job_of(attack="fake").cell
    folders = [settings.artifacts.work(key) for key in (cell.attack_key, cell.search_key)]

    def poison(target: Any, prompts: Any) -> Any:
        def attack() -> Any:
            for folder in folders:
                folder.mkdir(parents=True)
            for prompt in prompts:
                if not attacked:
                    change(of(target, prompts))
                attacked.append(prompt)
                yield Adversarial(prompt)

        return attack()

    result = run("attack", poison, fakes.DoesInTheDark if of is behind else fakes.Does)
    which = "the original model" if of is original else "the erased model"
    assert result.status == "failed"
    assert f"attack fake changed {which}, which it must leave as it is" in result.reason
    assert not list(settings.artifacts.root.glob("attacks/*/*"))
    assert not any(folder.exists() for folder in folders)
    again = call_again(run)
    assert [(r.own, r.detail) for r in again.rows] == [(r.own, r.detail) for r in expected.rows]
    for path in settings.artifacts.root.glob("images/*/*.png"):
        twin = settings.artifacts.root / "x" / path.relative_to(settings.artifacts.root)
        assert path.read_bytes() == twin.read_bytes()


def test_a_method_gets_a_copy_of_everything(run, settings) -> None:
    def spoil(model: DiffusersModel) -> None:
        for change in (zero, blur, words):
            change(model)

    before = Runner(settings).model(job_of().cell)
    result = run("method", spoil)
    assert "the tokenizer is not the base's" in result.reason
    after = run.runner.model(job_of().cell)
    assert all(torch.equal(t, weights(before)[n]) for n, t in weights(after).items())
    assert len(after.pipe.tokenizer) == len(before.pipe.tokenizer)


def test_what_a_judge_does_to_an_image_stays_with_it(run) -> None:
    def paint(samples: Any) -> None:
        for sample in samples:
            sample.image.paste((255, 0, 0), (0, 0, *sample.image.size))
            sample.image.info["unscored"] = "painted"

    assert run("judge", paint).status == "ok"
    kept = run.runner._images.memory.values()
    assert not any("unscored" in image.info for image in kept)
    assert not any((np.asarray(image) == (255, 0, 0)).all() for image in kept)


def test_what_a_plugin_leaves_behind_is_put_back(tmp_path: Path) -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    threads, folder, stopped = torch.get_num_threads(), Path.cwd(), signal.getsignal(signal.SIGINT)
    filters, output = list(warnings.filters), sys.stdout
    with pytest.raises(PluginError, match="fake raised ValueError: late"), guard("fake"):
        torch.rand(3), np.random.rand(3), random.random()
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        torch.set_num_threads(threads + 1)
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("medium")
        torch.autograd.set_detect_anomaly(True)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False
        torch.autocast("cpu", torch.bfloat16).__enter__()
        np.seterr(all="raise")
        logging.disable()
        sys.stdout = None
        warnings.simplefilter("error")
        os.chdir(tmp_path.parent)
        os.environ["FAKE"] = "1"
        del os.environ["BENCH_CACHE"]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise ValueError("late")
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()) == expected
    assert torch.ones(1).dtype == torch.float32
    assert (torch.ones(1).device.type, torch.get_default_device().type) == ("cpu", "cpu")
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.is_anomaly_enabled()
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32) == (False, True)
    assert not torch.is_autocast_enabled("cpu")
    assert "raise" not in np.geterr().values()
    assert not logging.root.manager.disable
    assert sys.stdout is output
    assert list(warnings.filters) == filters
    assert Path.cwd() == folder
    assert ("FAKE" in os.environ, "BENCH_CACHE" in os.environ) == (False, True)
    assert signal.getsignal(signal.SIGINT) is stopped


def test_gradients_that_an_attack_leaves_on_are_off_again(tiny) -> None:
    with guard("fake", victim=tiny):
        tiny.pipe.unet.train().requires_grad_(True)
        tiny.pipe.unet.conv_in.weight.grad = torch.ones_like(tiny.pipe.unet.conv_in.weight)
    assert not tiny.pipe.unet.training
    assert not any(p.requires_grad or p.grad is not None for p in tiny.pipe.unet.parameters())


@pytest.mark.parametrize("shape", [(), (3,), (64, 64), (300, 700), (8, 4, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_digest_tells_any_change(shape, dtype) -> None:
    x = torch.randn(shape).mul(100).to(dtype)
    assert _digest(x) == _digest(x.clone())
    for i in range(x.numel())[:: max(1, x.numel() // 7)]:
        other = x.clone()
        other.view(-1)[i] += 1
        assert _digest(other) != _digest(x)
    if len(shape) > 1:
        assert len({_digest(y) for y in (x, x.flip(0), x.flip(1), x.roll(1, 0))}) == 4


@pytest.mark.parametrize("spoil", ["paste", "close"])
def test_a_judge_gets_images_of_its_own(spoil: str, settings, monkeypatch) -> None:
    """One that paints over an image, or closes it, leaves the next measure and the picture alone."""

    def act(samples: Any) -> None:
        for sample in samples:
            sample.image.paste(0, (0, 0, 8, 8)) if spoil == "paste" else sample.image.close()

    monkeypatch.setitem(evaluators.PLUGINS, "fake", "fakes:Does")
    monkeypatch.setattr(fakes.Does, "what", staticmethod(act), raising=False)
    image = Image.new("RGB", (8, 8), "white")
    sample = Sample(Prompt("a", "a church", 1), image)
    assert Judges(settings).scorer(Measure("asr", Ref("fake"), "rate"))([sample]) == [
        Score(0.0, {})
    ]
    assert image.getbbox() == (0, 0, 8, 8)
