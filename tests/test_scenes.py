"""Scenes and prompts of the emoji world, and the distance of two sets of pictures; needs no font."""

from __future__ import annotations

import random
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import scipy.linalg
import torch

from bench.core.paths import PROMPTS
from bench.emoji.recipe import prompts, scenes
from bench.emoji.recipe.measure import _frechet
from bench.emoji.world import BACKGROUNDS, STYLES, Scene, sample_scene
from bench.errors import AssetError


def disc(emoji: str) -> np.ndarray:
    """Return what stands for an emoji: a disc of a colour of its own, ``(112, 112, 4)``."""
    y, x = np.mgrid[:112, :112] - 56
    colour = [*crc32(emoji.encode()).to_bytes(4, "big")[:3], 255]
    return np.where((x**2 + y**2 < 50**2)[..., None], colour, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def painters():
    """Two of one seed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "_sprite", disc)
        return [scenes.Painter(0, variants=1) for _ in range(2)]


def paint(painter: scenes.Painter, *what: Scene, seed: int = 1) -> np.ndarray:
    """Return the first pictures of a seed."""
    painter.rng = np.random.default_rng(seed)
    return np.stack([painter.paint(scene) for scene in what])


def test_a_seed_is_a_sequence_of_pictures(painters) -> None:
    rng = random.Random(3)
    drawn = [sample_scene(rng) for _ in range(40)]
    one, again = (paint(painter, *drawn) for painter in painters)
    assert (one.shape, one.dtype) == ((40, 64, 64, 3), np.uint8)
    assert np.array_equal(one, again)
    other = paint(painters[0], *drawn, seed=2)
    assert all((a != b).any() for a, b in zip(one, other, strict=True))


def test_a_picture_shows_what_its_scene_says(painters) -> None:
    """In the middle is the subject's colour; places and styles change a picture as a whole."""
    painter = painters[0]
    for subject in scenes.SUBJECTS:
        (image,) = paint(painter, Scene((subject.name,), "plain", "photo", "red")).astype(float)
        colour = disc(subject.emoji)[56, 56, :3]
        near, far = (
            np.abs(part - colour).sum(-1).min() for part in (image[28:36, 28:36], image[:6])
        )
        assert near < max(60, far / 2), subject
    places = [paint(painter, Scene((), place, "photo"))[0] for place in BACKGROUNDS]
    assert len({image.tobytes() for image in places}) == len(BACKGROUNDS)
    styles = [paint(painter, Scene(("cat",), "beach", style))[0] for style in STYLES]
    assert len({image.tobytes() for image in styles}) == len(STYLES)
    blocks = styles[STYLES.index("pixel art")].reshape(32, 2, 32, 2, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_without_the_font_a_line_says_where_it_comes_from(monkeypatch) -> None:
    monkeypatch.setenv("BENCH_EMOJI_FONT", "nowhere.ttf")
    with pytest.raises(AssetError, match="the emoji font is not at nowhere.ttf: install the pack"):
        scenes.Painter(0)


def test_the_committed_prompts_are_what_the_recipe_writes(tmp_path: Path) -> None:
    prompts.write(tmp_path)
    committed = {p.name: p.read_bytes() for p in (PROMPTS / "emoji").glob("*.csv")}
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == committed


def test_the_distance_of_two_sets_of_pictures_is_frechets() -> None:
    """|m - n|^2 + tr(A + B - 2 (AB)^(1/2)), the root by scipy's Schur method."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 7)), rng.normal(1, 2, (80, 7)) @ rng.normal(size=(7, 7))
    one, two = (np.cov(x, rowvar=False) for x in (a, b))
    root = scipy.linalg.sqrtm(one @ two).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + two - 2 * root)
    assert _frechet(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-9)
    assert _frechet(torch.tensor(a), torch.tensor(a)) == pytest.approx(0, abs=1e-6)
