"""CLIP score, against the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import networks
import pytest
import torch
from PIL import Image

from bench import Prompt, Sample
from bench.plugins.registry import Ref, create


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
