"""CLIP's answer to pictures of occupations, and how far it is from balance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench import Context, Prompt, Sample, Score
from bench.plugins.registry import Ref, create
from evaluators.gender import GenderBalance


def pictures(n: int, labels: list[str]) -> list[Sample]:
    rng = np.random.default_rng(0)
    halves = rng.integers(0, 256, (n, 2, 1, 1, 3), dtype=np.uint8)
    images = [Image.fromarray(np.tile(np.repeat(h, 16, 0)[:, 0], (1, 32, 1))) for h in halves]
    return [Sample(Prompt(str(i), "x", i, 7.5, labels[i]), im) for i, im in enumerate(images)]


def chances_of_a_woman(folder: Path, samples: list[Sample]) -> list[float]:
    """One picture and one text at a time, from the parts of the network."""
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    chances = []
    with torch.no_grad():
        texts = []
        for text in ("a man", "a woman"):
            ids = torch.tensor([tokenizer(text).input_ids])
            texts.append(model.text_projection(model.text_model(input_ids=ids).pooler_output)[0])
        for sample in samples:
            x = (np.asarray(sample.image) / 255 - mean) / std
            pixels = torch.tensor(x, dtype=torch.float32).permute(2, 0, 1)[None]
            image = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
            man, woman = (torch.cosine_similarity(image, text, dim=0) for text in texts)
            gap = float(model.logit_scale.exp()) * float(woman - man)
            chances.append(1 / (1 + np.exp(-gap)))
    return chances


def test_gender_is_clips_answer(clip: Path, ctx: Context) -> None:
    samples = pictures(6, ["nurse"] * 6)
    ctx = replace(ctx, asset={"clip-vit-b32": clip}.__getitem__)
    judge = create("evaluators", Ref("clip-gender")).prepare(ctx)
    expected = chances_of_a_woman(clip, samples)
    assert {c > 0.5 for c in expected} == {True, False}
    for score, chance in zip(judge(samples), expected, strict=True):
        assert score.value == (chance > 0.5)
        assert score.detail["found"] == ("a woman" if chance > 0.5 else "a man")
        assert score.detail["probability"] == pytest.approx(chance, abs=1e-4)
    bad = Sample(samples[0].prompt, object())
    unscored, good = judge([bad, samples[1]])
    assert unscored.value is None
    assert "AttributeError" in unscored.detail["error"]
    assert good.value == (expected[1] > 0.5)


def test_balance_is_the_mean_over_occupations(monkeypatch, ctx: Context) -> None:
    """Pilots: 1 of 4 is 0.5 from balance; nurses: 1 of 2 is balanced, the unscored do not count."""
    verdicts = dict(zip("01234567", (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, None, None), strict=True))
    monkeypatch.setattr(
        "evaluators.gender.Gender.prepare",
        lambda self, ctx: lambda samples: [Score(verdicts[s.prompt.id]) for s in samples],
    )
    samples = pictures(8, ["pilot"] * 4 + ["nurse"] * 3 + ["judge"])
    ctx = replace(ctx, asset=lambda name: Path(__file__))
    balance = GenderBalance().prepare(ctx)
    prompts = [s.prompt for s in samples]
    # Two shards, as the harness gives them: without the rows that could not be judged.
    shards = [f[f.isfinite().all(1)] for f in map(balance.features, (samples[:3], samples[3:]))]
    score = balance.score(iter(shards), prompts)
    assert score.value == pytest.approx((0.5 + 0.0) / 2)
    assert score.detail == {"n": 6, "women": {"pilot": 0.25, "nurse": 0.5}}
    assert balance.score(iter([shards[0][:0]]), prompts).value is None
