"""Stage 3, autoencoder: an AutoencoderKL whose encoder is an exact linear PCA of 4x4 patches.

The encoder is written by hand into the standard class: resnets are the identity, the strided
convolutions move space into channels, plus-minus pairs carry the sign through SiLU, and a large
constant channel in each group fixes GroupNorm's scale. Latents are final before any training; only
the decoder learns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from bench.emoji.recipe.loop import Schedule, fit

CHANNELS = (16, 48, 64)
LATENTS = 12
BATCH = 32
_GROUPS = 8
_LARGE = 100.0
_PATCH = 48  # 4 x 4 pixels x 3 colours


def pca_autoencoder(images: Tensor) -> AutoencoderKL:
    """Return the autoencoder with its encoder set, its decoder untrained.

    Args:
        images: ``(n, 3, 32, 32)`` in [-1, 1]; a few thousand give the principal components.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=_GROUPS,
        sample_size=32,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        _space_to_depth(vae.encoder)
        h = vae.encoder.conv_in(images)
        for block in vae.encoder.down_blocks[:2]:
            h = block(h)
        patches = h.permute(0, 2, 3, 1).reshape(-1, _PATCH).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        values, vectors = values.flip(0)[:LATENTS], vectors.flip(1)[:, :LATENTS]
        # Between whitening (power 1) and plain PCA (power 0): early components keep more weight.
        project = (vectors / values.sqrt() ** 0.75).float()
        _project(vae, project, -(mean.float() @ project))
        for name, module in vae.decoder.named_modules():
            if name.endswith("conv2"):
                _zero(module)
        latents = vae.encode(images).latent_dist.mean
        spread = float(latents.std())
    vae.register_to_config(scaling_factor=1 / spread)
    return vae


def _zero(module: nn.Module) -> None:
    for p in module.parameters():
        p.zero_()


def _space_to_depth(encoder: Any) -> None:
    """Route each 4x4 patch into the 48 channels that leave the second block."""
    for name, module in encoder.named_modules():
        if name.endswith("conv2"):
            _zero(module)
    _zero(encoder.conv_in)
    for i in range(3):
        encoder.conv_in.weight[i, i, 1, 1] = 1
    for level, width in ((0, 3), (1, 12)):
        down = encoder.down_blocks[level].downsamplers[0].conv
        _zero(down)
        for i in range(width):
            for row in range(2):
                for column in range(2):
                    down.weight[4 * i + 2 * row + column, i, row, column] = 1
    widen = encoder.down_blocks[1].resnets[0].conv_shortcut
    _zero(widen)
    for i in range(12):
        widen.weight[i, i, 0, 0] = 1


def _project(vae: AutoencoderKL, project: Tensor, shift: Tensor) -> None:
    """Write ``latent = patch @ project + shift``; SiLU(x) - SiLU(-x) = x carries it to the end."""
    last, out, norm = (
        vae.encoder.down_blocks[2].resnets[0].conv_shortcut,
        vae.encoder.conv_out,
        vae.encoder.conv_norm_out,
    )
    width = CHANNELS[2] // _GROUPS
    pairs = (width - 2) // 2
    for module in (last, out, norm, vae.quant_conv, vae.post_quant_conv):
        _zero(module)
    for group in range(_GROUPS):
        last.bias[group * width + width - 2] = _LARGE
        last.bias[group * width + width - 1] = -_LARGE
    norm.weight.fill_(_LARGE * (2 / width) ** 0.5)  # the standard deviation of every group
    for j in range(LATENTS):
        at = j // pairs * width + 2 * (j % pairs)
        for sign, channel in ((1, at), (-1, at + 1)):
            last.weight[channel, :, 0, 0] = sign * project[:, j]
            last.bias[channel] = sign * shift[j]
            out.weight[j, channel, 1, 1] = sign
    out.bias[LATENTS:] = -8
    for i in range(2 * LATENTS):
        vae.quant_conv.weight[i, i, 0, 0] = 1
    for i in range(LATENTS):
        vae.post_quant_conv.weight[i, i, 0, 0] = 1


def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return unscaled latent means, ``(n, 12, 8, 8)``."""
    with torch.no_grad():
        return torch.cat([vae.encode(part).latent_dist.mean for part in images.split(1000)])


def train_decoder(
    vae: AutoencoderKL, images: Tensor, latents: Tensor, folder: Path, steps: int
) -> None:
    """Fit the decoder in place to undo the encoder; ``images`` are uint8 ``(n, 32, 32, 3)``."""
    vae.requires_grad_(False)
    params = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for p in params:
        p.requires_grad_(True)

    def loss(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (BATCH,), generator=rng)
        z = latents[index]
        z = z + 0.05 * torch.randn(z.shape, generator=rng)
        e = vae.decode(z).sample - (images[index].permute(0, 3, 1, 2).float() / 127.5 - 1)
        edges = e.diff(dim=2).abs().mean() + e.diff(dim=3).abs().mean()
        return e.abs().mean() + 2 * e.square().mean() + 0.3 * edges

    schedule = Schedule(steps, 3e-3, warmup=30, decay=0.9)
    fit("decoder", vae, loss, schedule, folder, params=params, every=500)


def psnr(vae: AutoencoderKL, images: Tensor, latents: Tensor) -> float:
    """Return the reconstruction's peak signal-to-noise ratio in dB over ``(n, 3, 32, 32)`` images."""
    with torch.no_grad():
        error = (vae.decode(latents).sample.clamp(-1, 1) - images).square().mean((1, 2, 3))
    return float((-10 * torch.log10(error / 4)).mean())
