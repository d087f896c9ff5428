"""FID, KID, CLIP score, and the streaming of tasks that are measured as a set."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image
from torch import nn

from bench import AssetError, Context, Prompt, Sample, SpecError
from bench.emoji import JUDGES
from bench.engine import Runner, Settings
from bench.models.diffusers import DiffusersModel
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref, create
from bench.store.artifacts import Artifacts
from bench.store.store import Store
from bench.tasks.tasks import Measure, Task, load_task
from evaluators.fid import kernel_distance

N = 24


class Layers(nn.Module):
    """Has the shape of the published file: its ``layers`` take normalised pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 2048))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the published forward resizes")


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    real = networks.coco(tmp_path / "real")
    return {"inception": networks.extractor(tmp_path / "extractor.pt"), "coco-val2014": real}


@pytest.fixture
def context(tmp_path: Path, given: dict[str, Path]) -> Context:
    """A context that finds the assets."""

    def asset(name: str) -> Path:
        return next(given[n] for n in name.split("|") if n in given)

    settings = Settings(batch_size=4, artifacts=Artifacts(tmp_path / "kept"))
    return replace(settings.context("test", "evaluators"), asset=asset)


def scorer_of(name: str, context: Context, **params):
    """Prepare FID or KID with all images of the folder as its reference."""
    return create("evaluators", Ref(name, {"reference": "folder", **params})).prepare(context)


def samples(path: Path) -> list[Sample]:
    return [Sample(Prompt(p.stem, "x", 0), Image.open(p)) for p in sorted(path.glob("*.png"))]


def uneven(scorer, made: list[Sample]):
    return (scorer.features(made[a:b]) for a, b in ((0, 1), (1, 8), (8, 10), (10, len(made))))


# ---------------------------------------------------------------- against clean-fid and by hand
def test_fid_and_kid_are_clean_fids_between_folders(tmp_path, context, given) -> None:
    generated = networks.pictures(tmp_path / "generated", 1)
    options = {
        "custom_feat_extractor": torch.jit.load(given["inception"]),
        "num_workers": 0,
        "device": torch.device("cpu"),
        "use_dataparallel": False,
        "mode": "clean",
        "verbose": False,
    }
    folders = (str(generated), str(given["coco-val2014"]))
    options |= {"custom_image_tranform": lambda x: x}
    with torch.no_grad():
        fid = cleanfid.compute_fid(*folders, **options)
        kid = cleanfid.kernel_distance(
            *(
                cleanfid.get_folder_features(
                    f, options["custom_feat_extractor"], num_workers=0,
                    device=options["device"], verbose=False,
                ).astype(np.float64)
                for f in folders
            )
        )  # fmt: skip
    ours = scorer_of("fid", context)
    score = ours.score(uneven(ours, samples(generated)), [])
    assert score.value == pytest.approx(fid, rel=1e-6)
    assert fid > 0.01
    assert (score.detail["n"], score.detail["reference_n"], score.detail["crop"]) == (N, N, "none")
    # All of them in every subset, so that the draws do not matter.
    ours = scorer_of("kid", context, subsets=2)
    score = ours.score(uneven(ours, samples(generated)), [])
    assert score.value == pytest.approx(kid, rel=1e-6)  # features are float32
    assert score.detail["subset_size"] == N


def test_kernel_distance_is_the_unbiased_mmd_of_its_draws() -> None:
    x, y = torch.randn(9, 3), torch.randn(7, 3) + 0.5
    rng, total, m = np.random.default_rng(3), 0.0, 4
    for _ in range(5):
        a = [[float(v) for v in x[i]] for i in rng.choice(9, m, replace=False)]
        b = [[float(v) for v in y[i]] for i in rng.choice(7, m, replace=False)]

        def kernel(p: list[float], q: list[float]) -> float:
            return (sum(u * v for u, v in zip(p, q, strict=True)) / 3 + 1) ** 3

        for i in range(m):
            for j in range(m):
                total -= 2 * kernel(a[i], b[j]) / m**2
                if i != j:
                    total += (kernel(a[i], a[j]) + kernel(b[i], b[j])) / (m * (m - 1))
    assert kernel_distance(x, y, subsets=5, size=m, seed=3) == pytest.approx(total / 5, rel=1e-12)


def test_the_published_extractor_is_entered_where_clean_fid_enters_it(tmp_path, context, given):
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(Layers()).save(str(path))
    given["inception"] = path
    made = [Sample(Prompt("0", "x", 0), Image.effect_noise((299, 299), 90).convert("RGB"))]
    found = create("evaluators", Ref("fid")).prepare(context).features(made)
    pixels = torch.from_numpy(np.array(made[0].image)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        expected = InceptionV3W(str(tmp_path), download=False)(pixels)
    assert torch.allclose(found, expected, atol=1e-6)


def test_center_crop(tmp_path, context, given) -> None:
    big = Image.effect_noise((640, 480), 90).convert("RGB")
    made = [Sample(Prompt("0", "x", 0), big)]
    by_hand = big.crop((80, 0, 560, 480)).resize((512, 512), Image.Resampling.BICUBIC)
    plain = create("evaluators", Ref("fid")).prepare(context)
    crop = create("evaluators", Ref("fid", {"crop": "center-512"})).prepare(context)
    expected = plain.features([replace(made[0], image=by_hand)])
    assert torch.equal(crop.features(made), expected)
    assert torch.equal(crop.features([replace(made[0], image=by_hand)]), expected)
    assert not torch.equal(plain.features(made), expected)
    assert crop.key != plain.key


def test_what_cannot_be_read_is_a_row_of_nan(tmp_path, context) -> None:
    made = samples(networks.pictures(tmp_path / "generated", 1, n=3))
    scorer = create("evaluators", Ref("fid")).prepare(context)
    broken = scorer.features([made[0], replace(made[1], image="no image"), made[2]])
    assert broken.isnan().all(1).tolist() == [False, True, False]
    assert torch.equal(broken[[0, 2]], scorer.features(made)[[0, 2]])
    assert scorer.score([broken[:1]], []).value is None


# ---------------------------------------------------------------- the reference
def test_reference_is_the_prompts_images(tmp_path, context, given) -> None:
    made = samples(networks.pictures(tmp_path / "generated", 1))
    scorer = create("evaluators", Ref("fid")).prepare(context)
    prompts = [Prompt(str(i), "x", 0) for i in range(8, 20)]
    score = scorer.score([scorer.features(made)], prompts)
    part = tmp_path / "part"
    part.mkdir()
    for prompt in prompts:
        name = f"COCO_val2014_{int(prompt.id):012d}.jpg"
        (part / name).write_bytes((given["coco-val2014"] / name).read_bytes())
    given["coco-val2014"] = part
    other = scorer_of("fid", context)
    assert score.value == other.score([other.features(made)], []).value
    assert (score.detail["reference_n"], score.detail["reference"]) == (
        12, "images of the prompts' ids",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["fid", "kid"])
def test_a_file_that_is_missing_is_an_error_and_no_other_reference(context, given, name) -> None:
    judge = create("evaluators", Ref(name))
    prompts = [Prompt(str(i), "x", 0) for i in range(N)]
    judge.check(prompts, context.asset)
    (given["coco-val2014"] / "COCO_val2014_000000000003.jpg").unlink()
    for too_few in (prompts, [*prompts, Prompt("99", "x", 0)]):
        with pytest.raises(AssetError) as caught:
            judge.check(too_few, context.asset)
        message = str(caught.value)
        assert f"of the {len(too_few)} prompts, {len(too_few) - N + 1} are missing" in message
        assert "the first is COCO_val2014_000000000003.jpg" in message and "\n" not in message
    scorer = judge.prepare(context)
    features = torch.rand(8, 6)
    with pytest.raises(AssetError, match="1 are missing"):
        scorer.score([features], prompts)


def test_a_file_that_cannot_be_read_is_an_error_until_it_is_whole(context, given) -> None:
    path = given["coco-val2014"] / "COCO_val2014_000000000003.jpg"
    whole = path.read_bytes()
    path.write_bytes(
        whole[:200] + bytes(len(whole) - 200)
    )  # of the same size, as is the cache's key
    prompts = [Prompt(str(i), "x", 0) for i in range(N)]
    scorer = create("evaluators", Ref("fid")).prepare(context)
    with pytest.raises(AssetError, match=r"1 images of the reference .* COCO_val2014_000000000003"):
        scorer.score([torch.rand(8, 6)], prompts)
    path.write_bytes(whole)
    assert scorer.score([torch.rand(8, 6)], prompts).detail["reference_n"] == N


def test_images_of_one_name_in_two_folders(tmp_path, context, given) -> None:
    """All of a folder's images are the reference; of the prompts' ids each must be one image."""
    root = given["coco-val2014"]
    name = "COCO_val2014_000000000003.jpg"
    (root / "more").mkdir()
    (root / "more" / name).write_bytes((root / name).read_bytes())
    scorer = scorer_of("fid", context)
    score = scorer.score(
        [scorer.features(samples(networks.pictures(tmp_path / "generated", 1)))], []
    )
    assert score.detail["reference_n"] == N + 1
    with pytest.raises(AssetError, match=f"{name} is there twice, as .*: give the folder of one"):
        create("evaluators", Ref("fid")).check([Prompt("3", "x", 0)], context.asset)
    create("evaluators", Ref("fid")).check([Prompt("4", "x", 0)], context.asset)


def test_reference_is_extracted_once(tmp_path, context, given) -> None:
    generated = samples(networks.pictures(tmp_path / "generated", 1))
    scorer = scorer_of("fid", context)
    first = scorer.score([scorer.features(generated)], [])
    for path in given["coco-val2014"].iterdir():  # same names and sizes, nothing to read
        path.write_bytes(bytes(path.stat().st_size))
    for name in ("fid", "kid"):
        again = scorer_of(name, context)
        score = again.score([again.features(generated)], [])
        assert score.detail["reference_n"] == N
        if name == "fid":
            assert score == first
    for path in (context.basedir or context.workdir).glob("reference-*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])  # what is kept is damaged: it is made again
    with pytest.raises(AssetError, match=f"{N} images of the reference cannot be read"):
        scorer.score([scorer.features(generated)], [])


def test_saved_statistics_stand_for_the_images(tmp_path, context, given) -> None:
    """Two files as clean-fid writes them: FID needs one, KID the other."""
    made = samples(networks.pictures(tmp_path / "generated", 1))
    scorers = {name: scorer_of(name, context) for name in ("fid", "kid")}
    features = scorers["fid"].features(made)
    expected = {name: s.score([features], []).value for name, s in scorers.items()}
    real = [Image.open(p) for p in sorted(given.pop("coco-val2014").iterdir())]
    x = scorers["fid"].features([Sample(Prompt("0", "x", 0), image) for image in real]).numpy()
    moments, kid = tmp_path / "coco_clean_custom_na.npz", tmp_path / "coco_clean_custom_na_kid.npz"
    np.savez(moments, mu=x.mean(0, dtype=np.float64), sigma=np.cov(x.astype(float), rowvar=False))
    np.savez(kid, feats=x)
    given["coco-reference"] = moments
    saved = create("evaluators", Ref("fid")).prepare(context)
    assert saved.score([features], []).value == pytest.approx(expected["fid"], rel=1e-6)
    with pytest.raises(AssetError, match=r"_na.npz: expected feats, as clean-fid saves them"):
        create("evaluators", Ref("kid")).prepare(context)
    given["coco-reference"] = kid
    saved = create("evaluators", Ref("kid")).prepare(context)
    assert saved.score([features], []).value == pytest.approx(expected["kid"], rel=1e-9)
    with pytest.raises(AssetError, match=r"_kid.npz: expected mu and sigma"):
        create("evaluators", Ref("fid")).prepare(context)
    assert "coco-reference-kid" in create("evaluators", Ref("kid")).assets()[1].split("|")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(6), "sigma": np.zeros((5, 5))}, r"sigma of shape \(6, 6\).*got \(5, 5\)"),
        ({"mu": np.full(6, np.nan), "sigma": np.eye(6)}, "mu has numbers that are not finite"),
        ({"mu": np.array([{}], object), "sigma": np.eye(6)}, "expected mu and sigma.*allow_pickle"),
        ({"mu": np.array(["a"] * 6), "sigma": np.eye(6)}, "expected mu and sigma"),
        ({"feats": np.zeros((9, 6))}, "expected mu and sigma"),
    ],
)  # fmt: skip
def test_statistics_that_are_no_statistics(tmp_path, context, given, arrays, message) -> None:
    given.pop("coco-val2014")
    given["coco-reference"] = tmp_path / "s.npz"
    np.savez(given["coco-reference"], **arrays)
    with pytest.raises(AssetError, match=f"s.npz: .*{message}"):
        create("evaluators", Ref("fid")).prepare(context)


def test_statistics_of_another_extractor_are_refused(tmp_path, context, given) -> None:
    given.pop("coco-val2014")
    given["coco-reference"] = tmp_path / "s.npz"
    np.savez(
        given["coco-reference"], mu=np.zeros(2048), sigma=np.eye(2048), feats=np.zeros((4, 2048))
    )
    for name in ("fid", "kid"):
        scorer = create("evaluators", Ref(name)).prepare(context)
        with pytest.raises(AssetError, match=r"as the extractor gives it, got \(.*2048"):
            scorer.score([torch.rand(8, 6)], [])


def test_only_the_published_extractor_makes_a_fid(context, given, monkeypatch) -> None:
    digest = hashlib.sha256(given["inception"].read_bytes()).hexdigest()
    for name, other in (("fid", "frechet"), ("kid", "kernel")):
        scorer = scorer_of(name, context)
        score = scorer.score([torch.rand(8, 6)], [])
        assert score.detail["metric"] == f"{other}-{digest[:8]}"
        with monkeypatch.context() as patch:
            patch.setattr("evaluators.fid.INCEPTION", digest)
            assert scorer_of(name, context).score([torch.rand(8, 6)], []).detail["metric"] == name


# ---------------------------------------------------------------- the whole path
@pytest.fixture
def coco(monkeypatch: pytest.MonkeyPatch) -> Task:
    measures = (
        Measure("fid", Ref("fid"), "set"),
        Measure("kid", Ref("kid", {"subset_size": 6}), "set"),
        Measure("clip", Ref("clip-score"), "mean"),
    )
    prompts = tuple(Prompt(str(i), f"a photo of a cat {i}", i) for i in range(10))
    task = Task("coco", "emoji", "benign", None, prompts, measures, "digest")
    for module in ("bench.engine.runner", "bench.plan.plan"):
        monkeypatch.setattr(f"{module}.load_task", lambda name, world, **more: task)
    wanted = [name for m in measures for name in create("evaluators", m.evaluator).assets()]
    monkeypatch.setattr("bench.plan.plan.needs", lambda name, world, **more: wanted)
    monkeypatch.setattr("bench.plan.plan.concept_of", lambda name, world: None)
    return task


@pytest.fixture
def all_given(tmp_path: Path, given: dict[str, Path]) -> dict[str, Path]:
    return {
        **given,
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


def test_streaming_keeps_features_and_no_images(tmp_path, coco, all_given, made) -> None:
    runner, cell = start(tmp_path / "a", all_given, shard=4)
    result = runner.run(cell)
    assert (result.status, result.rows, runner._images.memory) == ("ok", (), {})
    assert made == [p.id for p in coco.prompts]
    assert set(cell.assets) == {"inception", "coco-val2014", "clip-vit-b32"}
    fid = result.measurements["fid"]
    assert (fid.n, fid.unscored, fid.low, fid.detail["n"]) == (10, 0, None, 10)
    assert {"mode", "crop", "format", "extractor", "reference_files"} <= set(fid.detail)
    # Three shards of two kinds: FID and KID share theirs.
    assert len(list((tmp_path / "a" / "features").rglob("*.safetensors"))) == 6
    assert not list((tmp_path / "a").rglob("*.png"))
    store = Store(tmp_path / "results")
    store.put(result)
    assert store.get(cell) == result
    # Another size of shards, images kept on the user's word: the same numbers.
    runner, cell = start(tmp_path / "b", all_given, shard=6, keep_images=True)
    other = runner.run(cell)
    assert len(list((tmp_path / "b").rglob("*.png"))) == 10
    for metric, m in result.measurements.items():
        assert other.measurements[metric].value == pytest.approx(m.value, rel=1e-9)
        assert math.isfinite(m.value)


def test_a_stopped_run_makes_only_what_is_missing(
    tmp_path, coco, all_given, made, monkeypatch
) -> None:
    runner, cell = start(tmp_path / "whole", all_given, shard=2)
    whole = runner.run(cell)
    made.clear()
    counted = DiffusersModel.generate

    def stopped(self, prompts, **more):
        if len(made) == 4:
            raise KeyboardInterrupt
        return counted(self, prompts, **more)

    runner, cell = start(tmp_path / "cache", all_given, shard=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DiffusersModel, "generate", stopped)
        runner.run(cell)
    made.clear()
    runner, cell = start(tmp_path / "cache", all_given, shard=2)
    assert runner.run(cell).measurements == whole.measurements
    assert made == [p.id for p in coco.prompts[4:]]


def test_unreadable_images_are_counted(tmp_path, coco, all_given, monkeypatch) -> None:
    generate = DiffusersModel.generate

    def broken(self, prompts, **more):
        images = generate(self, prompts, **more)
        return [["no image"] if p.id == "3" else i for p, i in zip(prompts, images, strict=True)]

    monkeypatch.setattr(DiffusersModel, "generate", broken)
    runner, cell = start(tmp_path / "a", all_given)
    measured = runner.run(cell).measurements
    assert {(m.n, m.unscored) for m in measured.values()} == {(9, 1)}


def test_blacked_out_images_are_counted_while_streaming(tmp_path, coco, all_given) -> None:
    runner, cell = start(tmp_path / "a", all_given, shard=2)
    cell = replace(cell, prompts=5)
    model = runner.erase(cell).model
    model.screen = lambda images: [Image.new("RGB", images[0].size), *images[1:]]
    black = runner.run(cell).measurements["blacked-out"]
    assert (black.value, black.n) == (3 / 5, 5)


def test_a_failing_measure_costs_no_other(tmp_path, coco, all_given) -> None:
    """CLIP without weights, and a reference that is enough for FID alone."""
    (all_given["clip-vit-b32"] / "model.safetensors").unlink()
    del all_given["coco-val2014"]
    all_given["coco-reference"] = tmp_path / "reference.npz"
    np.savez(all_given["coco-reference"], mu=np.zeros(3), sigma=np.eye(3))
    runner, cell = start(tmp_path / "a", all_given)
    result = runner.run(cell)
    assert result.status == "ok"
    fid, kid, clip = (result.measurements[metric] for metric in ("fid", "kid", "clip"))
    assert (fid.n, fid.unscored, fid.failed) == (10, 0, "") and math.isfinite(fid.value)
    for m, reason in ((kid, "expected feats"), (clip, "expected files that CLIPModel loads")):
        assert (m.value, m.n, m.unscored) == (None, 0, 10)
        assert reason in m.failed
    store = Store(tmp_path / "results")
    store.put(result)
    assert store.get(cell) == result


def test_features_keep_their_type(tmp_path, coco, all_given) -> None:
    """Labels are numbers that float32 cannot hold."""
    runner, cell = start(tmp_path / "a", all_given)
    _, extract = runner._stream._extract(cell, Measure("bias", Ref("clip-gender-balance"), "set"))
    picture = Image.new("RGB", (32, 32), "red")
    made = [Sample(Prompt(str(i), "x", i, label=f"job {i}"), picture) for i in range(20)]
    codes = extract(made)[:, 1].tolist()
    assert codes == [zlib.crc32(sample.prompt.label.encode()) for sample in made]
    assert any(float(np.float32(code)) != code for code in codes)


def test_missing_references_are_one_line_before_any_work(coco, all_given) -> None:
    del all_given["coco-val2014"]
    with pytest.raises(AssetError) as caught:
        start(Path("cache"), all_given)
    message = str(caught.value)
    assert "\n" not in message
    for flag in ("--asset coco-val2014=/path/to/folder", "--asset coco-reference=/path/to/file"):
        assert flag in message


def test_only_benign_tasks_are_measured_as_a_set(tmp_path: Path) -> None:
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "set.csv").write_text("id,text,seed,guidance\na,x,1,7\n")
    (tmp_path / "emoji" / "tasks.toml").write_text(
        '[t]\nrole="retain"\nprompts="set.csv"\n'
        'measures=[{metric="fid", evaluator="fid", reduce="set"}]\n'
    )
    with pytest.raises(SpecError, match="task 't': reduce 'set' needs the role benign, got retain"):
        load_task("t", "emoji", tmp_path)


# ---------------------------------------------------------------- CLIP score
@pytest.mark.parametrize("variant", ["b32-logits/100", "b32-x100", "l14-x100"])
def test_clip_score_is_the_models_own(tmp_path, ctx, variant) -> None:
    import transformers
    from transformers import CLIPModel, CLIPTokenizer

    path = networks.clip(tmp_path / "clip")
    texts = ["a photo of a cat", "a church", "a photo of a cat on the beach " * 12]
    made = [
        Sample(Prompt(str(i), text, 0), Image.effect_noise((50, 40), 90 - i).convert("RGB"))
        for i, text in enumerate(texts)
    ]
    model, tokenizer = CLIPModel.from_pretrained(path).eval(), CLIPTokenizer.from_pretrained(path)
    pil = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    processor = pil.from_pretrained(path)
    expected = []
    for sample in made:
        ids = tokenizer(sample.prompt.text).input_ids
        ids = [*ids[:76], tokenizer.eos_token_id] if len(ids) > 77 else ids
        pixels = processor(sample.image, return_tensors="pt").pixel_values
        with torch.no_grad():
            out = model(input_ids=torch.tensor([ids]), pixel_values=pixels)
        logit, scale = out.logits_per_image.item(), model.logit_scale.exp().item()
        values = {"b32-logits/100": logit / 100, "b32-x100": logit, "l14-x100": 100 * logit / scale}
        expected.append(values[variant])
    assert len(tokenizer(texts[2]).input_ids) > 77
    assets: dict[str, Path] = {}
    context = replace(ctx, asset=lambda name: assets.setdefault(name, path))
    evaluator = create("evaluators", Ref("clip-score", {"variant": variant}))
    broken = replace(made[0], image="no image")
    scores = evaluator.prepare(context)([*made, broken])
    assert [s.value for s in scores[:3]] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert scores[3].value is None
    assert "error" in scores[3].detail
    assert tuple(assets) == evaluator.assets()
    assert ("l14" in variant) == (evaluator.assets() == ("clip-vit-l14",))


# ---------------------------------------------------------------- the emoji world's stand-in
def test_emoji_frechet_is_the_formula(ctx) -> None:
    from safetensors.torch import load_file

    from bench.emoji.judges import features, load_judge

    rng = np.random.default_rng(0)
    made = [
        Sample(
            Prompt(str(i), "x", 0),
            Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32)),
        )
        for i in range(200)
    ]
    scorer = create("evaluators", Ref("emoji-frechet")).prepare(ctx)
    score = scorer.score(uneven(scorer, made), [])
    x = features(load_judge(JUDGES / "subject"), [s.image for s in made]).double().numpy()
    reference = load_file(JUDGES / "subject" / "reference.safetensors")
    mean, sigma = (reference[k].double().numpy() for k in ("mean", "covariance"))
    ours = np.cov(x, rowvar=False)
    roots = np.linalg.eigvals(ours @ sigma).real.clip(0) ** 0.5
    apart = ((x.mean(0) - mean) ** 2).sum()
    expected = apart + np.trace(ours) + np.trace(sigma) - 2 * roots.sum()
    assert score.value == pytest.approx(expected, rel=1e-6)
    assert score.detail == {"n": 200}
    broken = scorer.features([made[0], replace(made[1], image="no image")])
    assert broken.isnan().all(1).tolist() == [False, True]
