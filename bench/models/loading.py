"""Models by name: emoji-sd, random ones for tests and speed, the hub's, or any diffusers folder."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from bench.catalog import EMOJI_WEIGHTS, ModelInfo, check_model, model_info
from bench.errors import AssetError
from bench.models.diffusers import DiffusersModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def load_model(
    name: str, *, device: str = "cpu", dtype: str = "fp32", batch_size: int = 64
) -> DiffusersModel:
    """Return a model, ready to draw.

    Raises:
        UnknownNameError: No model has this name.
        AssetError: Its weights are not here and cannot be fetched.
    """
    check_model(name)
    info = model_info(name)
    pipe = _tiny_random() if info.source == "random" else _from_source(name, info)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device=torch.device(device), dtype=DTYPES[dtype])
    return DiffusersModel(pipe, info.world, info.sampling, batch_size)


def _from_source(name: str, info: ModelInfo) -> StableDiffusionPipeline:
    try:
        return StableDiffusionPipeline.from_pretrained(
            info.source, safety_checker=None, requires_safety_checker=False
        )
    except (OSError, ValueError) as exc:
        reason = str(exc).strip().splitlines()[0]
        raise AssetError(
            f"cannot load {name} from {info.source}: {reason} "
            "Give a local copy with --model /path/to/diffusers-folder"
        ) from exc


def _tiny_random() -> StableDiffusionPipeline:
    """Return a Stable Diffusion of 0.2 M random parameters with emoji-sd's tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(EMOJI_WEIGHTS / "model" / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = CLIPTextModel(
            CLIPTextConfig(
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
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
