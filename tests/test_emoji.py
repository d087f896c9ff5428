"""The emoji world: captions, training loop, autoencoder, and the shipped weights."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from bench.emoji import JUDGES, PATH
from bench.emoji.recipe.autoencoder import LATENTS, encode, pca_autoencoder
from bench.emoji.recipe.loop import Schedule, fit
from bench.emoji.recipe.pictures import STYLE_LABELS
from bench.emoji.world import BODY, NAMES, STYLES, UMBRELLA, Scene, caption, sample_scene


def test_captions_name_what_is_there() -> None:
    rng = random.Random(1)
    for name in NAMES:
        if name not in BODY:
            text = caption(Scene((name,), "beach", "photo"), rng, wording="name")
            assert name in text
    texts = [caption(Scene(("foot",), "sky", "photo"), rng, wording="implicit") for _ in range(50)]
    assert not any(word in text for text in texts for word in UMBRELLA)
    assert all("van gogh" in caption(Scene(("cat",), "sea", "van gogh"), rng, wording="name")
               for _ in range(20))  # fmt: skip


def test_scenes_cover_the_world() -> None:
    rng = random.Random(2)
    scenes = [sample_scene(rng) for _ in range(5000)]
    seen = Counter(name for scene in scenes for name in scene.subjects)
    assert set(seen) == set(NAMES)
    assert {scene.style for scene in scenes} == set(STYLES)
    assert any(not scene.subjects for scene in scenes)


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def loss(self, rng: torch.Generator) -> torch.Tensor:
        x = torch.randn(8, 3, generator=rng)
        return ((x @ self.w - x @ torch.tensor([1.0, -2.0, 3.0])) ** 2).mean()


class Killed(Exception):
    pass


def test_training_that_was_killed_gives_the_same_weights(tmp_path) -> None:
    def train(folder: str, die_at: int | None) -> torch.Tensor:
        net, calls = Line(), 0
        where = tmp_path / folder
        where.mkdir(exist_ok=True)

        def loss(rng: torch.Generator) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == die_at:
                raise Killed
            return net.loss(rng)

        schedule = Schedule(60, 0.1, warmup=5)
        fit("line", net, loss, schedule, where, ema=0.9, every=10)
        return net.w.detach().clone()

    with pytest.raises(Killed):
        train("a", die_at=35)
    resumed, whole = train("a", None), train("b", None)
    assert torch.equal(resumed, whole)
    assert torch.allclose(whole, torch.tensor([1.0, -2.0, 3.0]), atol=0.5)


def test_schedule() -> None:
    schedule = Schedule(100, 1.0, warmup=10, decay=0.5)
    assert schedule.at(0) == pytest.approx(0.1)
    assert schedule.at(30) == 1.0
    assert schedule.at(100) == pytest.approx(0.02)


def test_encoder_is_a_linear_pca_of_patches() -> None:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((200, 3, 8, 8), np.float32))
    smooth = nn.functional.interpolate(coarse, (64, 64), mode="bilinear").permute(0, 2, 3, 1)
    noise = 30 * rng.standard_normal((200, 64, 64, 3))
    images = (smooth.numpy() * 255 + noise).clip(0, 255).astype(np.uint8)
    vae = pca_autoencoder(images)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(50)])
    assert z.shape == (200, LATENTS, 8, 8)
    assert (encode(vae, images) - z).abs().max() < 1e-2
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * 64)
    patches = patches.double()
    latents = z.permute(0, 2, 3, 1).reshape(-1, LATENTS).double()
    ones = torch.ones(len(patches), 1, dtype=torch.float64)
    basis = torch.cat([patches, ones], 1)
    linear = basis @ torch.linalg.lstsq(basis, latents).solution
    assert (linear - latents).abs().max() < 1e-2
    covariance = torch.cov(latents.T)
    off = covariance - torch.diag(covariance.diagonal())
    assert off.abs().max() < 1e-2 * covariance.diagonal().max()
    # No linear reconstruction from as many numbers is better than that of the eigenvectors.
    back = torch.cat([latents, ones], 1)
    error = (back @ torch.linalg.lstsq(back, patches).solution - patches).square().sum(1).mean()
    spectrum = torch.linalg.eigvalsh(torch.cov(patches.T, correction=0)).flip(0)
    assert error == pytest.approx(float(spectrum[LATENTS:].sum()), rel=1e-3)


def test_shipped_model_loads_as_a_pipeline_and_draws() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(PATH)
    (image,) = pipe("a photo of a church on the beach", num_inference_steps=2).images
    assert image.size == (64, 64)
    ids = pipe.tokenizer("a photo of a church").input_ids
    assert pipe.tokenizer.decode(ids[1:-1]) == "a photo of a church"
    assert pipe.tokenizer.pad_token == pipe.tokenizer.eos_token


def test_shipped_weights_are_half_precision_and_small() -> None:
    files = list(PATH.parent.rglob("*.safetensors"))
    assert sum(p.stat().st_size for p in files) < 75e6
    assert {p.parent.name for p in files} >= {
        "unet",
        "vae",
        "text_encoder",
        "subject",
        "style",
        "body",
    }
    assert not list(PATH.parent.rglob("*.bin")) and not list(PATH.parent.rglob("*.pt"))


def test_judges_have_the_labels_of_the_world() -> None:
    from bench.emoji.judges import load_judge

    assert set(load_judge(JUDGES / "subject").labels) == {*NAMES, "nothing"}
    assert load_judge(JUDGES / "style").labels == STYLE_LABELS
    body = load_judge(JUDGES / "body")
    assert set(body.labels) == BODY
    assert 0 < body.threshold < 1
