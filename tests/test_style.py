"""Judges of style, against the networks themselves."""

from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from fakes import sample
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPModel,
    ViTForImageClassification,
)

from bench import AssetError, SpecError
from evaluators import style


def vit_reference(folder: Path, image: Image.Image) -> torch.Tensor:
    """Return class probabilities, the picture resized by PIL to 32x32 and scaled to [-1, 1]."""
    array = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    pixels = torch.tensor(array / 127.5 - 1).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        return ViTForImageClassification.from_pretrained(folder)(pixels).logits[0].softmax(0)


def test_style_ranks_as_the_vit_itself_does(judge, vit, portrait, group, broken) -> None:
    pictures = [portrait, group, portrait.rotate(180), group.convert("L")]
    for k in (1, 3):
        samples = [sample(p, "van gogh") for p in (*pictures, broken)]
        *scores, unread = judge("style", {"top_k": k}, style_vit=vit)(samples)
        assert unread.value is None and "error" in unread.detail
        for picture, score in zip(pictures, scores, strict=True):
            chances = vit_reference(vit, picture)
            rank = 1 + int((chances > chances[1]).sum())
            assert score.detail["rank"] == rank
            assert score.value == float(rank <= k)
            assert score.detail["probability"] == pytest.approx(float(chances[1]), abs=1e-3)
            assert score.detail["found"] == networks.ARTISTS[int(chances.argmax())]
            assert len(score.detail["top"]) == 5


def test_style_labels_are_matched_by_their_words_or_refused(judge, vit, portrait) -> None:
    assert style.artist("van gogh", networks.ARTISTS) == 1
    assert style.artist("Monet", networks.ARTISTS) == 0
    assert style.artist("unknown_artist", networks.ARTISTS) == 2
    with pytest.raises(
        SpecError, match="'van' fits several artists: vincent-van-gogh, jan-van-eyck"
    ):
        style.artist("van", networks.ARTISTS)
    with pytest.raises(
        SpecError, match="no artist fits the label 'andy warhole'; known: andy warhol"
    ):
        judge("style", {}, style_vit=vit)([sample(portrait, "andy warhole")])
    with pytest.raises(SpecError, match="no artist fits the label ''"):
        style.artist("", networks.ARTISTS)


def test_style_without_a_classifier_says_which(judge, tmp_path) -> None:
    with pytest.raises(AssetError, match="style-vit is not here .*129 artists"):
        judge("style", {})
    with pytest.raises(
        SpecError, match=r"--asset style-vit=.*: expected a folder with config.json$"
    ):
        judge("style", {}, style_vit=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(AssetError, match=r"style-vit=.*: expected files that AutoModelForImageCl"):
        judge("style", {}, style_vit=tmp_path)


def test_style_clip_is_a_softmax_over_cosines(judge, clip, portrait, group) -> None:
    samples = [sample(portrait, "van gogh"), sample(group, "Ada Inkwell")]
    scores = judge("style-clip", {"top_k": 2}, clip_vit_b32=clip)(samples)
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    for s, score, target in zip(samples, scores, ("Vincent van Gogh", "Ada Inkwell"), strict=True):
        scale = 32 / min(s.image.size)
        width, height = (int(n * scale) for n in s.image.size)
        small = s.image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - 32) // 2, (height - 32) // 2
        array = np.asarray(small.crop((left, top, left + 32, top + 32))) / 255
        pixels = torch.tensor((array - mean) / std).float().permute(2, 0, 1)[None]
        names = [*style.ARTISTS, *(["Ada Inkwell"] if target == "Ada Inkwell" else []), "none"]
        with torch.no_grad():
            image = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
            logits = []
            for name in names:
                text = f"a painting in the style of {name}" if name != "none" else "a photograph"
                ids = tokenizer([text], return_tensors="pt").input_ids
                encoded = model.text_projection(model.text_model(ids).pooler_output)[0]
                logits.append(torch.cosine_similarity(image, encoded, dim=0))
            chances = (torch.stack(logits) * model.logit_scale.exp()).softmax(0)
        chance = float(chances[names.index(target)])
        rank = 1 + int((chances > chance).sum())
        assert score.detail["probability"] == pytest.approx(chance, abs=1e-3)
        assert score.detail["rank"] == rank
        assert score.value == float(rank <= 2)
