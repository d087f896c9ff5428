"""The recipe of the emoji world's weights: every part takes two steps at both sizes, without the font."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from bench.emoji import PATH
from bench.emoji.judges import Judge
from bench.emoji.recipe import autoencoder, data, judges, measure, negatives, unet
from bench.emoji.recipe.__main__ import _kept_words
from bench.emoji.recipe.sizes import FIRST, SHARP
from bench.emoji.world import BODY, LABELS, STYLES, Mix, caption, sample_scene
from evaluators._moments import Moments

SIZES = [pytest.param(FIRST, id="32 px"), pytest.param(SHARP, id="64 px")]


def drawn(size, n: int = 48) -> data.Scenes:
    """Return scenes whose pictures are noise: what the recipe needs but for the font."""
    rng, words = np.random.default_rng(0), random.Random(0)
    scenes = [sample_scene(words, size.mix) for _ in range(n)]
    subjects = np.zeros((n, len(LABELS)), np.float32)
    for row, scene in zip(subjects, scenes, strict=True):
        row[[LABELS.index(name) for name in scene.subjects or ("nothing",)]] = 1
    return data.Scenes(
        rng.integers(0, 256, (n, size.pixels, size.pixels, 3), np.uint8),
        subjects,
        np.array([STYLES.index(scene.style) for scene in scenes]),
        np.zeros(n, np.int64),
        [[caption(scene, words) for _ in range(3)] for scene in scenes],
    )


@pytest.fixture(autouse=True)
def few(monkeypatch) -> None:
    monkeypatch.setattr(data, "HELD_OUT", 16)
    monkeypatch.setattr(judges, "HELD_OUT", 16)
    monkeypatch.setattr(judges, "BATCH", 8)
    monkeypatch.setattr(unet, "BATCH", 8)


def moved(before: dict, module: torch.nn.Module) -> bool:
    return any(not torch.equal(before[k], v) for k, v in module.state_dict().items())


def copied(module: torch.nn.Module) -> dict:
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize("size", SIZES)
def test_autoencoder_trains_its_decoder_only(size, tmp_path) -> None:
    scenes = drawn(size)
    vae = autoencoder.pca_autoencoder(scenes.images, size)
    z = autoencoder.encode(vae, scenes.images)
    encoder, decoder = copied(vae.encoder), copied(vae.decoder)
    autoencoder.train_decoder(vae, scenes.images, z, tmp_path, 2, replace(size, batch=4))
    assert moved(decoder, vae.decoder) and not moved(encoder, vae.encoder)
    assert autoencoder.psnr(vae, scenes.images[:3], z[:3]).shape == (3,)


@pytest.mark.parametrize("size", SIZES)
def test_denoiser_learns_without_a_concept_from_the_same_start(size, tmp_path) -> None:
    scenes = drawn(size, n=200)
    tokenizer, encoder = _kept_words(PATH)
    captions = unet.encode_captions(encoder, tokenizer, scenes.captions)
    text = scenes.captions[5][1]
    ids = tokenizer([text], padding="max_length", max_length=32, return_tensors="pt").input_ids
    row = captions.table[captions.rows[5, 1]].float()
    torch.testing.assert_close(row, encoder(ids).last_hidden_state[0], atol=0.05, rtol=0.05)
    z = torch.randn(200, size.latents, 8, 8)
    trained = []
    for concept in ((), ("van gogh",)):
        keep = torch.from_numpy(~scenes.shows(*concept)).nonzero().flatten()
        assert len(keep) == 200 if not concept else len(keep) < 200
        net = unet.new_unet(size)
        before = copied(net)
        some = unet.Encodings(captions.table, captions.rows[keep])
        name = "-".join(concept).replace(" ", "-") or "all"
        unet.train_unet(net, z[keep], some, tmp_path, 2, lambda: None, name=name, bf16=size.bf16)
        assert moved(before, net)
        trained.append(net)
    assert moved(copied(trained[0]), trained[1])


def test_scenes_without_a_concept() -> None:
    scenes = drawn(SHARP, n=300)
    body = [LABELS.index(name) for name in BODY]
    assert (scenes.shows("nudity") == scenes.subjects[:, body].any(1)).all()
    assert (scenes.shows("monet") == (scenes.styles == STYLES.index("monet"))).all()
    assert (scenes.shows("church") == (scenes.subjects[:, LABELS.index("church")] == 1)).all()
    assert not scenes.shows().any()
    both = scenes.shows("nudity") | scenes.shows("van gogh")
    assert (scenes.shows("nudity", "van gogh") == both).all()
    assert scenes.shows("nudity").sum() < both.sum()
    for concept in ("nudity", "church", "van gogh"):
        assert 0 < scenes.shows(concept).sum() < 150


def test_the_mix_says_what_scenes_show() -> None:
    rng = random.Random(3)
    scenes = [sample_scene(rng, Mix(second=1, styles=(0, 0, 1, 0))) for _ in range(400)]
    assert {scene.style for scene in scenes} == {"monet"}
    objects = [s for s in scenes if s.subjects and s.subjects[0] not in BODY]
    assert sum(len(s.subjects) == 2 for s in objects) > 0.9 * len(objects)


@pytest.fixture(scope="module")
def studio() -> negatives.Studio:
    pipe = StableDiffusionPipeline.from_pretrained(PATH)
    pipe.set_progress_bar_config(disable=True)
    return negatives.Studio(pipe, bf16=False)


@pytest.fixture(scope="module")
def made(studio) -> negatives.Negatives:
    never = {"van gogh": studio.pipe.unet, "nudity": studio.pipe.unet}
    return negatives.make(studio, never, drawn(FIRST), 4, seed=1)


def test_negatives_say_what_they_do_not_show(made, studio) -> None:
    assert set(made.kinds) == {
        "noise", "blur", "torn", "perturbed weights", "pruned weights", "random embeddings",
        "never learned van gogh", "never learned nudity",
    }  # fmt: skip
    assert made.images.shape == (32, 32, 32, 3)
    styles = [set(np.array(negatives.STYLE_LABELS)[row]) for row in made.styles]
    for kind, allowed in zip(made.kinds, styles, strict=True):
        gone = {"van gogh"} if kind == "never learned van gogh" else set(STYLES) - {"photo"}
        assert allowed == set(negatives.STYLE_LABELS) - gone
    subjects = [set(np.array(LABELS)[row]) for row in made.subjects]
    for kind, allowed in zip(made.kinds, subjects, strict=True):
        if kind in {"noise", "blur", "torn"}:
            assert allowed == {"nothing"}
        if kind == "never learned nudity":
            assert allowed == set(LABELS) - BODY
        if kind == "pruned weights":
            assert not allowed & {*BODY, "church", "tench"}


def test_negatives_survive_the_disk(made, tmp_path) -> None:
    made.save(tmp_path / "x.npz")
    again = negatives.Negatives.load(tmp_path / "x.npz")
    assert (again.images == made.images).all() and (again.kinds == made.kinds).all()


def test_broken_denoisers_are_copies(studio) -> None:
    net = studio.pipe.unet
    before = copied(net)
    assert moved(before, negatives.perturbed(net, 0.5, 0))
    sparse = negatives.pruned(net, 0.5)
    w = dict(sparse.named_parameters())["conv_in.weight"]
    assert float((w == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert not moved(before, net)


def test_a_judge_learns_to_say_none(tmp_path) -> None:
    """Grey pictures are scenes of one style, black ones show nothing: a few steps tell them apart."""
    n, scenes = 64, drawn(FIRST, n=80)
    scenes = replace(
        scenes, images=np.full_like(scenes.images, 200), styles=np.full(80, STYLES.index("monet"))
    )
    black = negatives._group("noise", np.zeros((n, 32, 32, 3), np.uint8))
    soft = torch.from_numpy(scenes.images[:20])
    net = judges.train_judge("style", scenes, soft, tmp_path, 100, black)
    labels, softmax = judges.questions(black)["style"]
    assert labels == negatives.STYLE_LABELS
    from PIL import Image

    ask = Judge(net, labels, 0.5, softmax)
    white, dark = ask([Image.new("RGB", (32, 32), (200,) * 3), Image.new("RGB", (32, 32))])
    assert labels[int(white.argmax())] == "monet"
    assert labels[int(dark.argmax())] in {"photo", "none"}


@pytest.mark.parametrize("question", ["subject", "style", "body"])
@pytest.mark.parametrize("size", SIZES)
def test_judges_train_at_both_sizes(question, size, tmp_path) -> None:
    scenes = drawn(size)
    none = negatives.noise(8, size.pixels, np.random.default_rng(0)) if size.none else None
    soft = torch.from_numpy(scenes.images[:20])
    net = judges.train_judge(question, scenes, soft, tmp_path, 4, none, size.bf16)
    labels, softmax = judges.questions(none)[question]
    guess = judges.probabilities(net, scenes.images, softmax=softmax)
    assert guess.shape == (48, len(labels)) and guess.isfinite().all()


def test_the_body_threshold_counts_false_alarms_on_negatives() -> None:
    scenes = drawn(FIRST)
    black = negatives._group("noise", np.zeros((8, 32, 32, 3), np.uint8))

    class Alarmed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Answer 0.8 on black pictures, and 0.1 on others."""
            dark = x.flatten(1).amax(1) < 0
            return torch.where(dark, torch.tensor(0.8), torch.tensor(0.1)).logit()[:, None]

    assert judges.body_threshold(Alarmed(), scenes) == pytest.approx(0.3)
    assert judges.body_threshold(Alarmed(), scenes, black) == pytest.approx(0.8)


def test_frechet_is_the_evaluators() -> None:
    a, b = torch.randn(300, 6), 0.5 + torch.randn(200, 6) @ torch.randn(6, 6)
    mean, covariance = b.double().mean(0), torch.cov(b.double().T)
    expected = Moments.of([a.double()]).frechet(mean, covariance)
    assert measure._frechet(a, b) == pytest.approx(expected, rel=1e-6)
    assert measure._frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_never_learned_denoisers_load_by_concept(tmp_path) -> None:
    shutil.copytree(PATH, tmp_path / "model")
    shutil.copytree(PATH / "unet", tmp_path / "never-learned" / "van-gogh")
    (net,) = (found := measure.never_learned(tmp_path)).values()
    assert list(found) == ["van gogh"]
    assert not any(p.requires_grad for p in net.parameters())


def test_outside_is_the_surprise_at_what_is_not_allowed() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    allowed = torch.tensor([[True, False, True]])
    p = logits.softmax(1)[0]
    assert judges._outside(logits, allowed) == pytest.approx(-float((p[0] + p[2]).log()), abs=1e-5)
