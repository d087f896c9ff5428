"""Tasks that are measured as a set: their images are made a shard at a time."""

from __future__ import annotations

import math
import sys
import weakref
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest
from PIL import Image

from bench import AssetError, Prompt, Sample
from bench.engine.folder import judge_images, match
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.models.diffusers import DiffusersModel
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref, create
from bench.store.artifacts import Artifacts
from bench.store.store import Store
from bench.tasks.entries import Entry
from bench.tasks.tasks import Measure, Task

pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture
def coco(monkeypatch: pytest.MonkeyPatch) -> Task:
    measures = (
        Measure("fid", Ref("fid"), "set"),
        Measure("kid", Ref("kid", {"subset_size": 6}), "set"),
        Measure("clip", Ref("clip-score"), "mean"),
    )
    prompts = tuple(Prompt(str(i), f"a photo of a cat {i}", i) for i in range(10))
    task = Task("coco", "emoji", "benign", None, prompts, measures, "digest")
    monkeypatch.setattr("bench.plan.plan.load_task", lambda name, world, **more: task)
    wanted = [name for m in measures for name in create("evaluators", m.evaluator).assets()]
    monkeypatch.setattr("bench.plan.plan.needs", lambda name, world, **more: wanted)
    entry = Entry("coco", "emoji", Path(), {"role": "benign"})
    monkeypatch.setattr("bench.plan.plan.find", lambda name, world: entry)
    return task


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    return {
        "coco-val2014": networks.coco(tmp_path / "real"),
        "inception": networks.extractor(tmp_path / "narrow.pt", width=3),
        "clip-vit-b32": networks.clip(tmp_path / "clip"),
    }


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of prompts whose images were made, as they are made."""
    ids: list[str] = []
    generate = DiffusersModel.generate

    def counted(self, prompts, **more):
        ids.extend(p.id for p in prompts)
        return generate(self, prompts, **more)

    monkeypatch.setattr(DiffusersModel, "generate", counted)
    return ids


def start(cache: Path, given: dict[str, Path], **settings) -> tuple[Runner, Callable]:
    none = (Ref("none"),)
    (cell,) = plan(Spec("tiny-random", none, none, ("coco",), assets=given))
    return Runner(
        Settings(batch_size=2, artifacts=Artifacts(cache), assets=given, **settings)
    ), cell


def test_streaming_keeps_features_and_no_images(tmp_path, coco, given, made) -> None:
    runner, cell = start(tmp_path / "a", given, shard=4)
    result = runner.run(cell)
    assert (result.status, result.rows, runner._images.memory) == ("ok", (), {})
    assert made == [p.id for p in coco.prompts]
    assert set(cell.cell.assets) == {"inception", "coco-val2014", "clip-vit-b32"}
    fid = result.measurements["fid"]
    assert (fid.n, fid.unscored, fid.low, fid.detail["n"]) == (10, 0, None, 10)
    assert {"mode", "crop", "format", "extractor", "reference_files"} <= set(fid.detail)
    # Three shards of two kinds: FID and KID share theirs.
    assert len(list((tmp_path / "a" / "features").rglob("*.safetensors"))) == 6
    assert not list((tmp_path / "a").rglob("*.png"))
    store = Store(tmp_path / "results")
    store.put(result)
    assert store.get(cell.cell) == result
    # Another size of shards, images kept on the user's word: the same numbers.
    runner, cell = start(tmp_path / "b", given, shard=6, keep_images=True)
    other = runner.run(cell)
    assert len(list((tmp_path / "b").rglob("*.png"))) == 10
    for metric, m in result.measurements.items():
        assert other.measurements[metric].value == pytest.approx(m.value, rel=1e-9)
        assert math.isfinite(m.value)


def test_a_stopped_run_makes_only_what_is_missing(tmp_path, coco, given, made, monkeypatch) -> None:
    runner, cell = start(tmp_path / "whole", given, shard=2)
    whole = runner.run(cell)
    made.clear()
    counted = DiffusersModel.generate

    def stopped(self, prompts, **more):
        if len(made) == 4:
            raise KeyboardInterrupt
        return counted(self, prompts, **more)

    runner, cell = start(tmp_path / "cache", given, shard=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DiffusersModel, "generate", stopped)
        runner.run(cell)
    made.clear()
    runner, cell = start(tmp_path / "cache", given, shard=2)
    assert runner.run(cell).measurements == whole.measurements
    assert made == [p.id for p in coco.prompts[4:]]


@pytest.mark.parametrize("folder", [False, True])
def test_no_more_images_are_alive_for_a_larger_set(
    tmp_path, coco, given, monkeypatch, folder
) -> None:
    """A shard of four, and the copies that a judge gets, whatever the number of prompts."""
    alive: list[weakref.ref[Image.Image]] = []
    most = 0

    def counted(make):
        def call(*args, **more):
            nonlocal most
            made = make(*args, **more)
            found = made if isinstance(made, list) else [getattr(made, "image", made)]
            alive[:] = [image for image in alive if image()] + [weakref.ref(i) for i in found]
            most = max(most, len(alive))
            return made

        return call

    monkeypatch.setattr(DiffusersModel, "generate", counted(DiffusersModel.generate))
    for place in ("stream.shown", "judge.shown", "folder.open_image"):
        module, name = place.split(".")
        whole = sys.modules[f"bench.engine.{module}"]
        monkeypatch.setattr(whole, name, counted(getattr(whole, name)))
    seen, measures = (
        {},
        (Measure("fid", Ref("fid", {"reference": "folder"}), "set"), coco.measures[2]),
    )
    for n in (12, 120):
        prompts = tuple(Prompt(str(i), f"a photo of a cat {i}", i) for i in range(n))
        task = replace(coco, prompts=prompts, measures=measures)
        most = 0
        monkeypatch.setattr("bench.plan.plan.load_task", lambda *_, task=task, **__: task)
        runner, job = start(tmp_path / str(n), given, shard=4)
        if folder:
            pictures = tmp_path / f"pictures-{n}"
            pictures.mkdir()
            for prompt in prompts:
                Image.new("RGB", (32, 32), (int(prompt.id), 9, 9)).save(
                    pictures / f"{prompt.id}.png"
                )
            matched = match(sorted(pictures.iterdir()), task)
            result = judge_images(job, matched, runner.settings)
        else:
            result = runner.run(job)
        assert (result.status, result.measurements["fid"].n) == ("ok", n)
        seen[n] = most
    assert seen[12] == seen[120] <= 4 + 4 + 2


def test_another_process_makes_the_shards_that_nobody_makes(
    tmp_path, coco, given, made, monkeypatch
) -> None:
    runner, cell = start(tmp_path / "whole", given, shard=2)
    whole = runner.run(cell)
    made.clear()
    runner, cell = start(tmp_path / "cache", given, shard=2)
    helper, _ = start(tmp_path / "cache", given, shard=2)
    counted, called = DiffusersModel.generate, []

    def helped(self, prompts, **more):
        if not called:  # the first shard is being made
            called.append(True)
            helper.help(cell, 0.5)
        return counted(self, prompts, **more)

    monkeypatch.setattr(DiffusersModel, "generate", helped)
    assert runner.run(cell).measurements == whole.measurements
    assert made == ["4", "5", "6", "7", "8", "9", "2", "3", "0", "1"]
    made.clear()
    helper.help(cell, 0.0)
    assert not made


def test_unreadable_images_are_counted(tmp_path, coco, given, monkeypatch) -> None:
    generate = DiffusersModel.generate

    def broken(self, prompts, **more):
        images = generate(self, prompts, **more)
        return [["no image"] if p.id == "3" else i for p, i in zip(prompts, images, strict=True)]

    monkeypatch.setattr(DiffusersModel, "generate", broken)
    runner, cell = start(tmp_path / "a", given)
    measured = runner.run(cell).measurements
    assert {(m.n, m.unscored) for m in measured.values()} == {(9, 1)}


def test_blacked_out_images_are_counted_while_streaming(tmp_path, coco, given) -> None:
    runner, cell = start(tmp_path / "a", given, shard=2)
    cell = replace(cell, cell=replace(cell.cell, prompts=5))
    model = runner.erase(cell.cell).model
    model.screen = lambda images: [Image.new("RGB", images[0].size), *images[1:]]
    black = runner.run(cell).measurements["blacked-out"]
    assert (black.value, black.n) == (3 / 5, 5)


def test_a_failing_measure_costs_no_other(tmp_path, coco, given) -> None:
    """CLIP without weights, and a reference that is enough for FID alone."""
    (given["clip-vit-b32"] / "model.safetensors").unlink()
    del given["coco-val2014"]
    given["coco-reference"] = tmp_path / "reference.npz"
    np.savez(given["coco-reference"], mu=np.zeros(3), sigma=np.eye(3))
    runner, cell = start(tmp_path / "a", given)
    result = runner.run(cell)
    assert result.status == "ok"
    fid, kid, clip = (result.measurements[metric] for metric in ("fid", "kid", "clip"))
    assert (fid.n, fid.unscored, fid.failed) == (10, 0, "") and math.isfinite(fid.value)
    for m, reason in ((kid, "expected feats"), (clip, "expected files that CLIPModel loads")):
        assert (m.value, m.n, m.unscored) == (None, 0, 10)
        assert reason in m.failed
    store = Store(tmp_path / "results")
    store.put(result)
    assert store.get(cell.cell) == result


def test_features_keep_their_type(tmp_path, coco, given) -> None:
    """Labels are numbers that float32 cannot hold."""
    runner, cell = start(tmp_path / "a", given)
    _, extract = runner._stream._extract(
        cell.cell, Measure("bias", Ref("clip-gender-balance"), "set")
    )
    picture = Image.new("RGB", (32, 32), "red")
    made = [Sample(Prompt(str(i), "x", i, label=f"job {i}"), picture) for i in range(20)]
    codes = extract(made)[:, 1].tolist()
    assert codes == [zlib.crc32(sample.prompt.label.encode()) for sample in made]
    assert any(float(np.float32(code)) != code for code in codes)


def test_missing_references_are_one_line_before_any_work(coco, given) -> None:
    del given["coco-val2014"]
    with pytest.raises(AssetError) as caught:
        start(Path("cache"), given)
    message = str(caught.value)
    assert "\n" not in message
    for flag in ("--asset coco-val2014=FOLDER", "coco-reference=FILE"):
        assert flag in message
