"""Stage 5, denoiser: a UNet2DConditionModel trained with SD's epsilon objective on 8x8 latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from bench.emoji.recipe.autoencoder import LATENTS
from bench.emoji.recipe.loop import Schedule, faster, fit
from bench.emoji.recipe.text import WIDTH, tokenize

CHANNELS = (64, 128)
BATCH = 256
_CHUNK = 1024


def new_unet() -> UNet2DConditionModel:
    """Return the untrained denoiser, 3.2 M parameters; one seed, so one start for all."""
    torch.manual_seed(0)
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


@dataclass(frozen=True, slots=True)
class Encodings:
    """What the text encoder makes of captions, each different one once.

    Args:
        table: ``(different, 32, 128)`` in bfloat16; the first is the empty caption's.
        rows: ``(scenes, captions)``, each caption's row in the table.
    """

    table: Tensor
    rows: Tensor


def encode_captions(
    encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[list[str]]
) -> Encodings:
    """Encode every different caption, and the empty one, once."""
    unique = list(dict.fromkeys(["", *(text for texts in captions for text in texts)]))
    row = {text: i for i, text in enumerate(unique)}
    parts = []
    with torch.no_grad():
        for i in range(0, len(unique), _CHUNK):
            ids = tokenize(tokenizer, unique[i : i + _CHUNK])
            parts.append(encoder(ids).last_hidden_state.bfloat16())
    return Encodings(torch.cat(parts), torch.tensor([[row[t] for t in ts] for ts in captions]))


def train_unet(
    unet: UNet2DConditionModel,
    latents: Tensor,
    captions: Encodings,
    folder: Path,
    steps: int,
    preview: Callable[[], None],
    *,
    name: str = "unet",
    decay: float = 0.6,
) -> None:
    """Train in place, with 10 % empty captions and min-SNR-5 weights.

    Args:
        unet: The denoiser.
        latents: Scaled, ``(scenes, 24, 8, 8)``.
        captions: Of the same scenes.
        folder: For the checkpoint.
        steps: Of :data:`BATCH` scenes each.
        preview: Called at each checkpoint with the averaged weights in place.
        name: Of the checkpoint.
        decay: Share of the steps in which the learning rate falls; 0 for a stage that others continue.
    """
    torch.manual_seed(0)
    unet.set_attn_processor(AttnProcessor())  # flash attention's backward is slow on a CPU
    alphas, rows = new_scheduler().alphas_cumprod, captions.rows

    def loss(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (BATCH,), generator=rng)
        row = rows[index, torch.randint(rows.shape[1], (BATCH,), generator=rng)]
        row = torch.where(torch.rand(BATCH, generator=rng) < 0.1, 0, row)
        z, t = latents[index], torch.randint(1000, (BATCH,), generator=rng)
        noise, a = torch.randn(z.shape, generator=rng), alphas[t].view(-1, 1, 1, 1)
        x = a.sqrt() * z + (1 - a).sqrt() * noise
        with faster():
            words = captions.table[row].float()
            predicted = unet(x, t, encoder_hidden_states=words).sample.float()
        snr = (a / (1 - a)).flatten()
        weight = snr.clamp(max=5) / snr
        return (weight * (predicted - noise).square().mean((1, 2, 3))).mean()

    schedule = Schedule(steps, 2e-3, warmup=100, decay=decay)
    fit(name, unet, loss, schedule, folder, ema=0.998, preview=preview, every=400)
