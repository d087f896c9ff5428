"""Small networks of random weights in the layouts of the published files: no test downloads any."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from bench.sources.catalog import EMOJI_WEIGHTS
from evaluators import nudenet

ARTISTS = (
    "claude-monet", "vincent-van-gogh", "Unknown Artist", "jan-van-eyck", "andy-warhol", "x", "y",
)  # fmt: skip
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 32}  # fmt: skip
_VISION = {**_SMALL, "image_size": 32, "patch_size": 8}


# ---------------------------------------------------------------- networks of transformers
def clip(folder: Path) -> Path:
    """Write a CLIP with emoji-sd's tokenizer; its answers to two pictures differ."""
    shutil.copytree(EMOJI_WEIGHTS / "model" / "tokenizer", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(5)
    text = {
        **_SMALL, "projection_dim": 16, "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    config = CLIPConfig(
        text_config=text, vision_config={**_VISION, "projection_dim": 16}, projection_dim=16
    )
    CLIPModel(config).save_pretrained(folder)
    _clip_processor().save_pretrained(folder)
    return folder


def _clip_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def safety_checker(folder: Path, threshold: float = -2.0) -> Path:
    """Write Stable Diffusion's filter; a picture whose cosine to a concept is above is unsafe, here all."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

    torch.manual_seed(2)
    config = CLIPConfig(vision_config=_VISION, text_config=_SMALL, projection_dim=16)
    checker = StableDiffusionSafetyChecker(config)
    nn.init.constant_(checker.concept_embeds_weights, threshold)
    nn.init.constant_(checker.special_care_embeds_weights, 2.0)
    checker.save_pretrained(folder)
    _clip_processor().save_pretrained(folder)
    return folder


def vit(folder: Path, artists: tuple[str, ...] = ARTISTS) -> Path:
    """Write a classifier of artists."""
    torch.manual_seed(1)
    names = dict(enumerate(artists))
    config = ViTConfig(
        **_VISION, initializer_range=0.7, id2label=names, label2id={v: k for k, v in names.items()}
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def resnet(folder: Path) -> Path:
    """Write a classifier of ImageNet's classes as microsoft/resnet-50 has it; logits spread by 2."""
    torch.manual_seed(3)
    net = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], num_labels=1000
        )
    )
    net.classifier[1].weight.data *= 3
    net.save_pretrained(folder)
    ConvNextImageProcessor(
        size={"shortest_edge": 224}, crop_pct=0.875, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip
    return folder


# ---------------------------------------------------------------- FID's extractor and reference
class Extractor(nn.Module):
    """Any network will do: pooled pixels, mixed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool, self.mix = nn.AdaptiveAvgPool2d(4), nn.Linear(48, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.mix(self.pool(x / 255).flatten(1)))


def extractor(path: Path, width: int = 6) -> Path:
    torch.manual_seed(5)
    torch.jit.script(Extractor(width)).save(str(path))
    return path


def pictures(path: Path, seed: int, n: int = 24, name: str = "{}.png") -> Path:
    """Write coloured images of several sizes; files of another seed are darker."""
    path.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(n):
        coarse = rng.integers(0, 256 - 40 * seed, (5, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((40 + i, 64 - i), Image.Resampling.BICUBIC)
        image.save(path / name.format(i))
    return path


def coco(path: Path) -> Path:
    return pictures(path, 2, name="COCO_val2014_{:012d}.jpg")


# ---------------------------------------------------------------- NudeNet's: ONNX, made of a formula
def field(number: int, value: int | bytes | str) -> bytes:
    """Encode one field of a protobuf message."""

    def varint(n: int) -> bytes:
        return bytes([n & 127 | (128 if n > 127 else 0)]) + (varint(n >> 7) if n > 127 else b"")

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def node(op: str, inputs: list[str], output: str, **ints: list[int] | int) -> bytes:
    attributes = b""
    for name, value in ints.items():
        body = field(1, name)
        body += (
            field(3, value) + field(20, 2)
            if isinstance(value, int)
            else b"".join(field(8, i) for i in value) + field(20, 7)
        )
        attributes += field(5, body)
    names = b"".join(field(1, name) for name in inputs)
    return field(1, names + field(2, output) + field(4, op) + attributes)


def tensor(name: str, array: np.ndarray) -> bytes:
    kind = {"float32": 1, "int32": 6}[str(array.dtype)]
    dims = b"".join(field(1, n) for n in array.shape)
    return field(5, dims + field(2, kind) + field(8, name) + field(9, array.tobytes()))


def port(number: int, name: str, kind: int, *shape: int | str) -> bytes:
    dims = b"".join(field(1, field(1 if isinstance(n, int) else 2, n)) for n in shape)
    return field(number, field(1, name) + field(2, field(1, field(1, kind) + field(2, dims))))


def write_onnx(path: Path, *graph: bytes) -> Path:
    body = b"".join(graph) + field(2, "made here")
    path.write_bytes(field(1, 8) + field(8, field(1, "") + field(2, 13)) + field(7, body))
    return path


def detector(path: Path, found: dict[str, float], batch: int | str = "n") -> Path:
    """Write a version 3 detector: each label's score is the given one times the mean brightness."""
    table = np.zeros((1, 22, len(found)), np.float32)
    for i, (name, score) in enumerate(found.items()):
        table[0, :4, i] = 20 + 60 * i, 50, 40, 40
        table[0, 4 + list(nudenet.V3).index(name), i] = score
    return write_onnx(
        path,
        node("ReduceMean", ["images"], "grey", axes=[1], keepdims=0),
        node("ReduceMean", ["grey"], "mean", axes=[1, 2], keepdims=1),
        node("Mul", ["mean", "table"], "output0"),
        tensor("table", table),
        port(11, "images", 1, batch, 3, 320, 320),
        port(12, "output0", 1, batch, 22, len(found)),
    )


# ---------------------------------------------------------------- names of CompVis's code
BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def compvis(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tiny denoiser's tensors under the names of CompVis's code, written out by hand."""
    renamed = {}
    for name, tensor in state.items():
        block = next(b for b in BLOCKS if name.startswith(f"{b}."))
        rest = name.removeprefix(f"{block}.")
        if "resnets" in block:
            layer, _, kind = rest.rpartition(".")
            rest = f"{RESNET[layer]}.{kind}"
        renamed[f"model.diffusion_model.{BLOCKS[block]}.{rest}"] = tensor.clone()
    assert len(renamed) == len(state)
    return renamed


def compvis_vae(state: dict[str, torch.Tensor], last: int) -> dict[str, torch.Tensor]:
    """Return an autoencoder's tensors under the names of CompVis's code; ``last`` up block is its 0."""
    rules = (
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{last - int(m[1])}.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"),
        ("group_norm", "norm"), ("to_out.0", "proj_out"), (r"to_([qkv])", r"\1"),
        ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
    )  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        inner, image = name, tensor
        for old, new in rules:
            inner = re.sub(old, new, inner)
        if "attn_1" in inner and inner.endswith("weight") and image.dim() == 2:
            image = image[:, :, None, None]  # linear layers were convolutions
        renamed[f"first_stage_model.{inner}"] = image.clone()
    return renamed


# ---------------------------------------------------------------- by the names of the assets
MAKERS: dict[str, Callable[[Path], Path]] = {
    "clip-vit-b32": clip,
    "clip-vit-h14": clip,
    "coco-val2014": coco,
    "inception": extractor,
    "nudenet-best": lambda path: detector(path, {"FEET_EXPOSED": 0.9, "FACE_FEMALE": 0.9}),
    "resnet50-ms": resnet,
    "safety-checker": safety_checker,
    "style-vit": vit,
}


def assets(folder: Path) -> Callable[[str], Path]:
    """Return what a context's ``asset`` is, with files that are made when they are asked for."""

    def find(name: str) -> Path:
        name = next((n for n in name.split("|") if n in MAKERS), name)
        path = folder / name
        with torch.random.fork_rng():
            return path if path.exists() else MAKERS[name](path)

    return find
