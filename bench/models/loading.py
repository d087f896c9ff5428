"""Models by name: emoji-sd, random ones, the hub's, any diffusers folder, a single-file checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast
from transformers.utils import logging as transformers_logging

from bench.core.devices import laid_out
from bench.core.errors import SpecError
from bench.core.types import World
from bench.models.checkpoints import read_tensors
from bench.models.diffusers import DTYPES, DiffusersModel
from bench.models.folders import load_file_model, load_folder, pipeline, text_width
from bench.sources.catalog import (
    EMOJI_WEIGHTS,
    check_model,
    configuration,
    local,
    model_info,
    split,
)

diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def load_model(
    name: str,
    *,
    world: World | None = None,
    device: str = "cpu",
    dtype: str = "fp32",
    batch_size: int = 64,
) -> DiffusersModel:
    """Return a model, ready to draw. Stable Diffusion's built-in safety checker is off.

    Args:
        name: As :func:`bench.sources.catalog.model_info` takes it.
        world: Its world, if it fits both; its own by default.
        device: Where the weights are put.
        dtype: Their type: "fp32", "bf16" or "fp16".
        batch_size: Images made at once.

    Raises:
        UnknownNameError: No model has this name.
        SpecError: It is not a Stable Diffusion, or only unpickling could read it.
        AssetError: Weights are missing and cannot be fetched, or are incomplete.
    """
    if torch.device(device).type == "meta":
        raise SpecError("--device meta holds no numbers: expected cpu, cuda or mps")
    check_model(name)
    info = model_info(name, world)
    if info.source == "random":
        pipe = _sd14_random() if split(name)[0] == "sd14-random" else _tiny_random()
    elif (path := Path(info.source)).is_file():
        tensors = {n.removeprefix("state_dict."): t for n, t in read_tensors(path).items()}
        config = configuration(info, text_width(tensors, info.source))
        pipe = load_file_model(path, tensors, config, DTYPES[dtype])
    else:
        pipe = load_folder(local(name), DTYPES[dtype])
    if info.prediction:
        pipe.scheduler.register_to_config(prediction_type=info.prediction)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device=torch.device(device), dtype=DTYPES[dtype])
    for part in (pipe.unet, pipe.vae):
        laid_out(part, device)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return DiffusersModel(pipe, info.world, replace(info.sampling, size=side), batch_size)


def _sd14_random() -> StableDiffusionPipeline:
    """Return Stable Diffusion v1.4's exact shapes with random weights, to measure speed and memory.

    Sizes that are not given here are the libraries' defaults.
    """
    text = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        projection_dim=768,
        pad_token_id=49407,
    )
    unet = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "sample_size": 512,
    }
    return _random(text, unet, vae, _stand_in_tokenizer())


def _stand_in_tokenizer() -> CLIPTokenizerFast:
    """Return a tokenizer with the ids and lengths of Stable Diffusion's, for speed and memory only.

    CLIP's layout (bytes, bytes that end a word, merges, then start 49406 and end 49407; 77 positions)
    with emoji-sd's 1000 merges in place of CLIP's 48894; the other ids are tokens that no text has.
    """
    small = json.loads((EMOJI_WEIGHTS / "model" / "tokenizer" / "tokenizer.json").read_bytes())
    known = sorted(small["model"]["vocab"], key=small["model"]["vocab"].__getitem__)
    words = [token for token in known if token not in {"<|startoftext|>", "<|endoftext|>"}]
    unused = [f"<unused-{i}>" for i in range(49406 - len(words))]
    vocab = {t: i for i, t in enumerate([*words, *unused, "<|startoftext|>", "<|endoftext|>"])}
    merges = [" ".join(m) if isinstance(m, list) else m for m in small["model"]["merges"]]
    with TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        lines = ["#version: 0.2", *merges]
        Path(folder, "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return CLIPTokenizerFast.from_pretrained(folder, model_max_length=77)


def _tiny_random() -> StableDiffusionPipeline:
    """Return a Stable Diffusion of 0.2 M random parameters with emoji-sd's tokenizer."""
    tokenizer = CLIPTokenizerFast.from_pretrained(EMOJI_WEIGHTS / "model" / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 8, 16),
        "norm_num_groups": 4,
    }
    return _random(text, unet, vae, tokenizer)


def _random(
    text: CLIPTextConfig, unet: dict[str, Any], vae: dict[str, Any], tokenizer: CLIPTokenizerFast
) -> StableDiffusionPipeline:
    """Return a pipeline of these shapes with random weights, the same each time, and SD's schedule."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "text_encoder": CLIPTextModel(text),
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**vae),
        }
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return pipeline(tokenizer=tokenizer, scheduler=scheduler, **parts)
