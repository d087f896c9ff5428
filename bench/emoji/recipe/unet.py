"""Stage 5, denoiser: a UNet2DConditionModel trained with SD's epsilon objective on 8x8 latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from bench.emoji.recipe.autoencoder import LATENTS
from bench.emoji.recipe.loop import Schedule, fit
from bench.emoji.recipe.text import WIDTH, tokenize

CHANNELS = (64, 128)
BATCH = 256
_CHUNK = 1024


def new_unet() -> UNet2DConditionModel:
    """Return the untrained denoiser, 3.2 M parameters."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Return SD 1.x's noise schedule with DDIM sampling."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def encode_captions(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]
) -> tuple[Tensor, Tensor]:
    """Encode every different caption once.

    Returns:
        The encodings ``(different, 32, 128)`` in bfloat16, and each text's row among them.
    """
    unique = list(dict.fromkeys(texts))
    row = {text: i for i, text in enumerate(unique)}
    parts = []
    with torch.no_grad():
        for i in range(0, len(unique), _CHUNK):
            ids = tokenize(tokenizer, unique[i : i + _CHUNK])
            parts.append(encoder(ids).last_hidden_state.bfloat16())
    return torch.cat(parts), torch.tensor([row[text] for text in texts])


def train_unet(
    unet: UNet2DConditionModel,
    latents: Tensor,
    captions: list[list[str]],
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int,
    preview: Callable[[], None],
) -> None:
    """Train in place on scaled latents ``(n, 12, 8, 8)``, 10 % empty captions, min-SNR-5 weights."""
    torch.manual_seed(0)
    unet.set_attn_processor(AttnProcessor())  # flash attention's backward is slow on a CPU
    alphas = new_scheduler().alphas_cumprod
    table, rows = encode_captions(encoder, tokenizer, ["", *(t for ts in captions for t in ts)])
    empty, rows = rows[0], rows[1:].reshape(len(captions), -1)

    def loss(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (BATCH,), generator=rng)
        row = rows[index, torch.randint(rows.shape[1], (BATCH,), generator=rng)]
        row = torch.where(torch.rand(BATCH, generator=rng) < 0.1, empty, row)
        z, t = latents[index], torch.randint(1000, (BATCH,), generator=rng)
        noise, a = torch.randn(z.shape, generator=rng), alphas[t].view(-1, 1, 1, 1)
        x = a.sqrt() * z + (1 - a).sqrt() * noise
        predicted = unet(x, t, encoder_hidden_states=table[row].float()).sample
        snr = (a / (1 - a)).flatten()
        weight = snr.clamp(max=5) / snr
        return (weight * (predicted - noise).square().mean((1, 2, 3))).mean()

    schedule = Schedule(steps, 2e-3, warmup=100, decay=0.6)
    fit("unet", unet, loss, schedule, folder, ema=0.998, preview=preview, every=400)
