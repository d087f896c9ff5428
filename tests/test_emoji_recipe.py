"""The recipe of the emoji world's weights: every part takes two steps, without the font."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from bench.emoji import PATH
from bench.emoji.judges import Judge
from bench.emoji.recipe import autoencoder, data, judges, measure, pictures, text, unet
from bench.emoji.recipe.__main__ import _kept_words
from bench.emoji.world import BODY, BODY_PARTS, LABELS, NAMES, STYLES, Mix, caption, sample_scene
from evaluators._moments import Moments


def drawn(n: int = 48) -> data.Scenes:
    """Return scenes whose pictures are noise: what the recipe needs but for the font."""
    rng, words = np.random.default_rng(0), random.Random(0)
    scenes = [sample_scene(words, data.MIX) for _ in range(n)]
    subjects = np.zeros((n, len(LABELS)), np.float32)
    for row, scene in zip(subjects, scenes, strict=True):
        row[[LABELS.index(name) for name in scene.subjects or ("nothing",)]] = 1
    return data.Scenes(
        rng.integers(0, 256, (n, 64, 64, 3), np.uint8),
        subjects,
        np.array([STYLES.index(scene.style) for scene in scenes]),
        np.zeros(n, np.int64),
        [[caption(scene, words) for _ in range(3)] for scene in scenes],
    )


@pytest.fixture(autouse=True)
def few(monkeypatch) -> None:
    monkeypatch.setattr(data, "HELD_OUT", 16)
    monkeypatch.setattr(judges, "HELD_OUT", 16)
    monkeypatch.setattr(autoencoder, "BATCH", 4)
    monkeypatch.setattr(judges, "BATCH", 8)
    monkeypatch.setattr(unet, "BATCH", 8)


def moved(before: dict, module: torch.nn.Module) -> bool:
    return any(not torch.equal(before[k], v) for k, v in module.state_dict().items())


def copied(module: torch.nn.Module) -> dict:
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_text_encoder_trains(tmp_path) -> None:
    scenes, (tokenizer, _) = drawn(n=300), _kept_words(PATH)
    clip, found = text.train_clip(scenes, tokenizer, tmp_path, 2)
    assert all(p.isfinite().all() for p in clip.parameters()) and 0 <= found <= 1


def test_autoencoder_trains_its_decoder_only(tmp_path) -> None:
    scenes = drawn()
    vae = autoencoder.pca_autoencoder(scenes.images)
    z = autoencoder.encode(vae, scenes.images)
    encoder, decoder = copied(vae.encoder), copied(vae.decoder)
    autoencoder.train_decoder(vae, scenes.images, z, tmp_path, 2)
    assert moved(decoder, vae.decoder) and not moved(encoder, vae.encoder)
    assert autoencoder.psnr(vae, scenes.images[:3], z[:3]).shape == (3,)


def test_denoiser_learns_without_a_concept_from_the_same_start(tmp_path) -> None:
    scenes = drawn(n=200)
    tokenizer, encoder = _kept_words(PATH)
    captions = unet.encode_captions(encoder, tokenizer, scenes.captions)
    asked = scenes.captions[5][1]
    ids = tokenizer([asked], padding="max_length", max_length=32, return_tensors="pt").input_ids
    row = captions.table[captions.rows[5, 1]].float()
    torch.testing.assert_close(row, encoder(ids).last_hidden_state[0], atol=0.05, rtol=0.05)
    z = torch.randn(200, autoencoder.LATENTS, 8, 8)
    trained = []
    for concept in ((), ("van gogh",)):
        keep = torch.from_numpy(~scenes.shows(*concept)).nonzero().flatten()
        assert len(keep) == 200 if not concept else len(keep) < 200
        net = unet.new_unet()
        before = copied(net)
        some = unet.Encodings(captions.table, captions.rows[keep])
        name = "-".join(concept).replace(" ", "-") or "all"
        unet.train_unet(net, z[keep], some, tmp_path, 2, lambda: None, name=name)
        assert moved(before, net)
        trained.append(net)
    assert moved(copied(trained[0]), trained[1])


def test_scenes_without_a_concept() -> None:
    scenes = drawn(n=300)
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
def studio() -> pictures.Studio:
    pipe = StableDiffusionPipeline.from_pretrained(PATH)
    pipe.set_progress_bar_config(disable=True)
    return pictures.Studio(pipe, bf16=False)


@pytest.fixture(scope="module")
def made(studio) -> pictures.Pictures:
    never = {"van gogh": studio.pipe.unet, "nudity": studio.pipe.unet}
    return pictures.make(studio, never, drawn(), 4, seed=1)


def test_pictures_say_what_they_do_not_show(made, studio) -> None:
    assert set(made.kinds) == {
        "noise", "blur", "torn", "perturbed weights", "pruned weights", "random embeddings",
        "never learned van gogh", "never learned nudity", pictures.OWN,
    }  # fmt: skip
    counts = dict(zip(*np.unique(made.kinds, return_counts=True), strict=True))
    assert counts.pop(pictures.OWN) == 8 and counts.pop("never learned nudity") == 28
    assert set(counts.values()) == {4}
    assert made.images.shape == (64, 64, 64, 3)
    styles = [set(np.array(pictures.STYLE_LABELS)[row]) for row in made.styles]
    for kind, allowed in zip(made.kinds, styles, strict=True):
        if kind.startswith("never learned"):
            assert set(pictures.STYLE_LABELS) - allowed == {"van gogh"} & {kind[14:]}
        elif kind == pictures.OWN:
            assert len(allowed) == 1 and allowed <= set(STYLES)
        else:
            assert allowed == {"photo", "none"}
    subjects = [set(np.array(LABELS)[row]) for row in made.subjects]
    for kind, allowed in zip(made.kinds, subjects, strict=True):
        if kind in {"noise", "blur", "torn"}:
            assert allowed == {"nothing"}
        if kind == "never learned nudity":
            assert allowed == set(LABELS) - BODY
        if kind == "pruned weights":
            assert not allowed & {*BODY, "church", "tench"}
    for kind, parts in zip(made.kinds, made.parts.tolist(), strict=True):
        if kind != pictures.OWN:
            assert set(parts) == {-1 if kind == "never learned van gogh" else 0}


def test_what_the_model_draws_itself_shows_what_was_asked_for(studio) -> None:
    rng = random.Random(0)
    scenes = pictures.shown_scenes(2 * len(NAMES), rng)
    assert {name for scene in scenes for name in scene.subjects} == set(NAMES)
    assert {scene.style for scene in scenes} == set(STYLES)
    asked = scenes[:12]
    own = pictures.drawn_as_asked(studio, asked, 5, rng)
    names = [part.name for part in BODY_PARTS]
    for scene, subjects, styles, parts in zip(
        asked, own.subjects, own.styles, own.parts, strict=True
    ):
        assert set(np.array(LABELS)[subjects]) == set(scene.subjects)
        assert np.array(pictures.STYLE_LABELS)[styles] == [scene.style]
        assert {n for n, seen in zip(names, parts, strict=True) if seen} == {*scene.subjects} & BODY


def test_other_words_are_those_of_captions() -> None:
    texts = pictures.with_other_words(["a photo of an eye"] * 50, random.Random(0))
    before = [text.removesuffix(" a photo of an eye").split() for text in texts]
    assert {len(words) for words in before} == {2, 3, 4, 5, 6}
    said = {word for words in before for word in words}
    assert len(said) > 60 and said & {"painting", "monet", "gogh", "pixel"} and said & {*NAMES}


def test_random_words_stand_before_every_second_text(studio) -> None:
    texts = [f"a photo of a church {i}" for i in range(20)]
    mixed = pictures.with_random_words(texts, studio.pipe.tokenizer, random.Random(0))
    assert mixed[::2] == texts[::2]
    assert all(m.endswith(f" {t}") for m, t in zip(mixed[1::2], texts[1::2], strict=True))


def test_a_body_part_that_may_be_there_teaches_nothing() -> None:
    logits = torch.randn(4, 8, dtype=torch.float64)
    truth = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]] * 2 + [[-1.0] * 8] * 2).double()
    p = logits[:2].sigmoid()
    expected = -(truth[:2] * p.log() + (1 - truth[:2]) * (1 - p).log()).sum() / 4
    assert float(judges._wrong(logits, truth)) == pytest.approx(float(expected))


def test_pictures_survive_the_disk(made, tmp_path) -> None:
    made.save(tmp_path / "x.npz")
    again = pictures.Pictures.load(tmp_path / "x.npz")
    assert (again.images == made.images).all() and (again.kinds == made.kinds).all()


def test_broken_denoisers_are_copies(studio) -> None:
    net = studio.pipe.unet
    before = copied(net)
    assert moved(before, pictures.perturbed(net, 0.5, 0))
    sparse = pictures.pruned(net, 0.5)
    w = dict(sparse.named_parameters())["conv_in.weight"]
    assert float((w == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert not moved(before, net)


def test_a_judge_learns_to_say_none(tmp_path) -> None:
    """Grey pictures are scenes of one style, black ones show nothing: a few steps tell them apart."""
    n, scenes = 64, drawn(n=80)
    scenes = replace(
        scenes, images=np.full_like(scenes.images, 200), styles=np.full(80, STYLES.index("monet"))
    )
    black = pictures._group("noise", np.zeros((n, 64, 64, 3), np.uint8))
    soft = torch.from_numpy(scenes.images[:20])
    net = judges.train_judge("style", scenes, soft, tmp_path, 100, black)
    labels, softmax = judges.QUESTIONS["style"]
    assert labels == pictures.STYLE_LABELS
    from PIL import Image

    ask = Judge(net, labels, 0.5, softmax)
    white, dark = ask([Image.new("RGB", (64, 64), (200,) * 3), Image.new("RGB", (64, 64))])
    assert labels[int(white.argmax())] == "monet"
    assert labels[int(dark.argmax())] in {"photo", "none"}


@pytest.mark.parametrize("question", ["subject", "style", "body"])
def test_judges_train(question, tmp_path) -> None:
    scenes, none = drawn(), pictures.noise(8, np.random.default_rng(0))
    soft = torch.from_numpy(scenes.images[:20])
    net = judges.train_judge(question, scenes, soft, tmp_path, 4, none)
    labels, softmax = judges.QUESTIONS[question]
    guess = judges.probabilities(net, scenes.images, softmax=softmax)
    assert guess.shape == (48, len(labels)) and guess.isfinite().all()


class Alarmed(torch.nn.Module):
    """Says "yes, 0.8" to every label of black pictures, and 0.1 of others."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        dark = x.flatten(1).amax(1) < 0
        p = torch.where(dark, torch.tensor(0.8), torch.tensor(0.1))
        return p.logit()[:, None].expand(-1, self.labels)


def test_the_body_threshold_counts_false_alarms() -> None:
    black = pictures._group("noise", np.zeros((8, 64, 64, 3), np.uint8))
    assert judges.threshold("body", Alarmed(8), black) == pytest.approx(0.8)
    unknown = pictures._group("x", black.images, parts=-1)
    grey = pictures._group("noise", np.full((8, 64, 64, 3), 200, np.uint8))
    both = pictures.join((unknown, grey))
    assert judges.threshold("body", Alarmed(8), both) == pytest.approx(0.3)


def test_a_subject_counts_from_where_one_in_a_thousand_is_a_false_alarm() -> None:
    n = 2000
    sure = torch.linspace(0, 1, n)
    black = pictures._group("noise", np.zeros((n, 64, 64, 3), np.uint8), ("castle", "nothing"))

    class Says(torch.nn.Module):
        """Finds a church with rising probability; the rest is a castle, which may be there."""

        seen = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return logits."""
            p = sure[self.seen : self.seen + len(x)]
            self.seen += len(x)
            logits = torch.full((len(x), len(LABELS)), -100.0)
            logits[:, LABELS.index("church")] = p.log()
            logits[:, LABELS.index("castle")] = (1 - p).log()
            return logits

    assert judges.threshold("subject", Says(), black) == pytest.approx(0.9)  # the highest
    sure = sure * 0.7
    found = judges.threshold("subject", Says(), black)
    assert found == pytest.approx(float(sure.quantile(0.999)))
    sure = sure * 0.5
    assert judges.threshold("subject", Says(), black) == 0.5


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


def test_the_recipe_refuses_at_once_what_would_fail_after_hours(tmp_path) -> None:
    from typer.testing import CliRunner

    from bench.emoji.recipe.__main__ import app

    def said(*more: str) -> str:
        found = CliRunner().invoke(
            app, ["--work", f"{tmp_path}/w", "--out", f"{tmp_path}/o", *more]
        )
        assert found.exit_code == 2, found.output
        return " ".join(found.output.replace("│", " ").split())

    assert "expected one of" in said("--without", "church", "--without", "fox")
    assert "5000" in said("--scenes", "4000")
    assert "no folder text_encoder" in said("--words", str(tmp_path))
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "steps.json").write_text('{"scenes": 1}')
    assert "was begun with other sizes, {'scenes': 1}" in said()
    assert [p.name for p in tmp_path.rglob("*")] == ["w", "steps.json"]


def test_the_committed_samples_are_what_the_command_draws(tmp_path) -> None:
    measure.samples(out=tmp_path / "s.png", size=96)
    mine, ours = (
        np.asarray(Image.open(path), np.float32)
        for path in (tmp_path / "s.png", PATH.parent / "samples.png")
    )
    assert mine.shape == ours.shape
    assert np.abs(mine - ours).mean() < 3  # machines round differently
