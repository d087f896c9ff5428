"""One way to load networks that look at images: formats of weights, what is missing, whose pixels."""

import json
import shutil
from pathlib import Path
from pickle import Pickler

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from bench import AssetError
from bench.models import load_tokens, load_vision
from bench.sources.catalog import EMOJI_WEIGHTS

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
PUBLISHED = {  # as the folders of 2021 and 2022 have it
    "crop_size": 32, "do_center_crop": True, "do_normalize": True, "do_resize": True, "size": 32,
    "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "image_mean": MEAN, "image_std": STD,
}  # fmt: skip


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A folder as CLIP's publishers have it, with random weights."""
    torch.manual_seed(0)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    text = {**tower, "vocab_size": 1514, "bos_token_id": 1512, "eos_token_id": 1513}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(
        tmp_path / "clip"
    )
    (tmp_path / "clip/preprocessor_config.json").write_text(json.dumps(PUBLISHED))
    for file in (EMOJI_WEIGHTS / "model/tokenizer").iterdir():
        shutil.copy(file, tmp_path / "clip")
    return tmp_path / "clip"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_images_are_prepared_with_pillow(clip) -> None:
    """Pillow's bicubic of whole numbers; the torchvision processor differs by up to a grey level."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (75, 50, 4), dtype=np.uint8), "RGBA")
    _, pixels = load_vision(CLIPModel, clip)
    small = picture.convert("RGB").resize((32, 48), Image.Resampling.BICUBIC).crop((0, 8, 32, 40))
    expected = (np.asarray(small) / 255 - MEAN) / STD
    np.testing.assert_allclose(pixels([picture])[0].permute(1, 2, 0), expected, atol=1e-5)


def test_a_bin_file_of_tensors_is_read_as_safetensors_are(clip) -> None:
    net, pixels = load_vision(CLIPVisionModelWithProjection, clip)
    expected = net(pixels([Image.new("RGB", (40, 40), "red")])).image_embeds
    torch.save(weights(clip), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()
    other, pixels = load_vision(CLIPVisionModelWithProjection, clip)
    again = other(pixels([Image.new("RGB", (40, 40), "red")])).image_embeds
    torch.testing.assert_close(again, expected)  # where numbers lie in memory decides the last bit
    assert not other.training and not any(p.requires_grad for p in other.parameters())


def test_half_precision_is_read_in_fp32(clip) -> None:
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in weights(clip).items()},
        clip / "model.safetensors",
        {"format": "pt"},
    )
    net, _ = load_vision(CLIPModel, clip)
    assert {p.dtype for p in net.parameters()} == {torch.float32}


class Runs:
    """Unpickled, it would make a file."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_what_would_run_code_is_refused(clip) -> None:
    (clip / "model.safetensors").unlink()
    torch.save({"logit_scale": Runs()}, clip / "pytorch_model.bin")
    with pytest.raises(AssetError, match=r"clip=.*holds more than tensors and is not read; give"):
        load_vision(CLIPModel, clip, asset="clip")
    with (clip / "pytorch_model.bin").open("wb") as stream:
        Pickler(stream).dump(Runs())
    with pytest.raises(AssetError):
        load_vision(CLIPModel, clip)
    assert not Path("executed").exists()


def test_weights_that_are_missing_or_do_not_fit_are_refused(clip) -> None:
    """transformers would fill them with random numbers."""
    state = weights(clip)
    whole = state.pop("visual_projection.weight")
    save_file(state, clip / "model.safetensors", {"format": "pt"})
    with pytest.raises(AssetError, match="but 1 are missing .* visual_projection.weight"):
        load_vision(CLIPModel, clip)
    save_file(
        {**state, "visual_projection.weight": whole[:, 1:].contiguous()},
        clip / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(AssetError, match="another shape, the first is visual_projection.weight"):
        load_vision(CLIPModel, clip)


@pytest.mark.parametrize("damage", ["no folder", "no weights", "no config", "cut", "no processor"])
def test_an_unusable_folder_is_one_line(clip, damage) -> None:
    if damage == "no folder":
        shutil.rmtree(clip)
    elif damage == "cut":
        (clip / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes()[:3000])
    else:
        files = {"no weights": "model.safetensors", "no config": "config.json"}
        (clip / files.get(damage, "preprocessor_config.json")).unlink()
    with pytest.raises(AssetError) as caught:
        load_vision(CLIPModel, clip, asset="clip-vit-b32")
    assert str(caught.value).startswith(f"clip-vit-b32={clip}: expected ")
    assert "\n" not in str(caught.value)


def test_long_texts_are_cut(clip) -> None:
    tokens = load_tokens(clip)
    ids = tokens(["a church", "a " * 200])["input_ids"]
    assert ids.shape == (2, 77)
    assert (ids[1, 0], ids[1, -1]) == (ids[0, 0], ids[0, 3])  # start and end are there
    with pytest.raises(AssetError, match="expected CLIP's tokenizer"):
        load_tokens(clip / "nothing")
