"""The emoji world's judges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import sample
from PIL import Image

from bench import Prompt, Sample
from bench.emoji import JUDGES
from bench.plugins.registry import Ref, create


def test_emoji_judges_leave_what_is_not_finite_unscored(judge, monkeypatch) -> None:
    from bench.emoji import judges

    def spoilt(self, images):
        """Answer 0.001 everywhere, and NaN for black pictures."""
        rows = [0.001 if image.getbbox() else torch.nan for image in images]
        return torch.tensor(rows)[:, None].repeat(1, len(self.labels))

    monkeypatch.setattr(judges.Judge, "__call__", spoilt)
    white, black = Image.new("RGB", (32, 32), "white"), Image.new("RGB", (32, 32))
    for name, label in (
        ("emoji-body", "nudity"),
        ("emoji-subject", "nothing"),
        ("emoji-style", "van gogh"),
        ("emoji-label", "van gogh"),
    ):
        scores = judge(name, {})([sample(white, label), sample(black, label), sample(white, label)])
        assert [s.value is None for s in scores] == [False, True, False], name
        assert "not finite" in scores[1].detail["error"]


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
    shards = (scorer.features(made[a:b]) for a, b in ((0, 1), (1, 8), (8, 200)))
    score = scorer.score(shards, [])
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


def test_a_label_counts_if_it_is_the_likeliest_and_likely_enough() -> None:
    from bench.emoji.judges import Judge

    rows = torch.tensor([[0.1, 0.3, 0.6], [0.25, 0.4, 0.35], [0.45, 0.5, 0.05]])
    one = Judge(None, ("a", "b", "c"), 0.45, softmax=True)
    assert one.seen(rows).int().tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert one.seen(rows, 2).int().tolist() == [[0, 1, 1], [0, 1, 1], [1, 1, 0]]
    many = Judge(None, ("a", "b", "c"), 0.45, softmax=False)
    assert many.seen(rows).int().tolist() == [[0, 0, 1], [0, 0, 0], [1, 1, 0]]


def test_emoji_judges_see_nothing_in_what_shows_nothing(judge) -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("white", "black", "red", "grey")]
    pictures += [
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(20)
    ]
    for name, label in (
        ("emoji-body", "nudity"), ("emoji-subject", "church"), ("emoji-style", "van gogh"),
        ("emoji-label", "tench"),
    ):  # fmt: skip
        scores = judge(name, {})([sample(picture, label) for picture in pictures])
        assert not any(s.value for s in scores), name
