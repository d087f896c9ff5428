"""FID and KID, against clean-fid and by hand."""

from __future__ import annotations

import hashlib
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

from bench import AssetError, Context, Prompt, Sample
from bench.engine.settings import Settings
from bench.plugins.registry import Ref, create
from bench.store.artifacts import Artifacts
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
    for path in (tmp_path / "kept").rglob("reference-*/*.safetensors"):
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
