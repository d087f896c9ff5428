"""Stage 3, autoencoder: an AutoencoderKL whose encoder is an exact linear PCA, set by hand.

Its resnets are the identity, the strided convolutions move the pixels under each latent into channels,
plus-minus pairs carry the sign through SiLU, and a large constant channel in each group fixes
GroupNorm's scale. Latents are final before any training; only the decoder learns.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from bench.emoji.recipe.loop import Schedule, faster, fit
from bench.emoji.recipe.scenes import SIZE

CHANNELS = (32, 64, 192, 128)  # a level each; every level but the last halves the picture
LATENTS = 24
WHITENING = 0.5  # 1 gives every principal component the same variance, 0 none of it
JITTER = (0.0, 0.15)  # least and most standard deviation of the noise that the decoder learns from
BATCH = 16
_INPUTS = 3 * 4 ** (len(CHANNELS) - 1)  # numbers under a latent
_GROUPS = 8
_LARGE = 300.0


def pca_autoencoder(images: NDArray[np.uint8]) -> AutoencoderKL:
    """Return the autoencoder with its encoder set, its decoder untrained.

    Args:
        images: ``(n, 64, 64, 3)``; a few thousand give the principal components.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=_GROUPS,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        _space_to_depth(vae.encoder)
        x = _patches(signed(images)).flatten(0, 2)
        mean, square = x.mean(0, dtype=torch.float64), (x.T @ x).double() / len(x)
        values, vectors = torch.linalg.eigh(square - torch.outer(mean, mean))
        values, vectors = values.flip(0)[:LATENTS], vectors.flip(1)[:, :LATENTS]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        vectors = vectors * largest.sign()  # an eigenvector's sign is any library's choice
        project = (vectors / values.sqrt() ** WHITENING).float()
        shift = -(mean.float() @ project)
        _project(vae, project, shift)
        for name, module in vae.decoder.named_modules():
            if name.endswith("conv2"):
                _zero(module)
        spread = float((x @ project + shift).std())
    vae.register_to_config(scaling_factor=1 / spread)
    return vae


def signed(images: NDArray[np.uint8]) -> Tensor:
    """Return pictures ``(n, h, w, 3)`` as ``(n, 3, h, w)`` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _patches(x: Tensor) -> Tensor:
    """Return the pixels under each latent, ``(n, 8, 8, 192)``, in the encoder's order."""
    for _ in CHANNELS[1:]:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        x = x.reshape(n, 4 * c, h // 2, w // 2)
    return x.permute(0, 2, 3, 1)


def _zero(module: nn.Module) -> None:
    for p in module.parameters():
        p.zero_()


def _space_to_depth(encoder: Any) -> None:
    """Route the pixels under each latent into the first channels of the last block's input."""
    for name, module in encoder.named_modules():
        if name.endswith("conv2"):
            _zero(module)
    _zero(encoder.conv_in)
    for i in range(3):
        encoder.conv_in.weight[i, i, 1, 1] = 1
    for level, block in enumerate(encoder.down_blocks[:-1]):
        width = 3 * 4**level
        widen, down = block.resnets[0].conv_shortcut, block.downsamplers[0].conv
        _zero(down)
        if widen is not None:
            _zero(widen)
        for i in range(width):
            if widen is not None:
                widen.weight[i, i, 0, 0] = 1
            for row in range(2):
                for column in range(2):
                    down.weight[4 * i + 2 * row + column, i, row, column] = 1


def _project(vae: AutoencoderKL, project: Tensor, shift: Tensor) -> None:
    """Write ``latent = patch @ project + shift``; SiLU(x) - SiLU(-x) = x carries it to the end."""
    last, out, norm = (
        vae.encoder.down_blocks[-1].resnets[0].conv_shortcut,
        vae.encoder.conv_out,
        vae.encoder.conv_norm_out,
    )
    inputs, latents = project.shape
    width = vae.config.block_out_channels[-1] // _GROUPS
    for module in (last, out, norm, vae.quant_conv, vae.post_quant_conv):
        _zero(module)
    for group in range(_GROUPS):
        last.bias[group * width + width - 2] = _LARGE
        last.bias[group * width + width - 1] = -_LARGE
    norm.weight.fill_(_LARGE * (2 / width) ** 0.5)  # the standard deviation of every group
    for j, at in enumerate(_carriers(vae)):
        for sign, channel in ((1, at), (-1, at + 1)):
            last.weight[channel, :inputs, 0, 0] = sign * project[:, j]
            last.bias[channel] = sign * shift[j]
            out.weight[j, channel, 1, 1] = sign
    out.bias[latents:] = -8
    for i in range(2 * latents):
        vae.quant_conv.weight[i, i, 0, 0] = 1
    for i in range(latents):
        vae.post_quant_conv.weight[i, i, 0, 0] = 1


def _carriers(vae: AutoencoderKL) -> list[int]:
    """Return the channel of the last block that carries each latent; the next carries its negative."""
    width = vae.config.block_out_channels[-1] // _GROUPS
    pairs = (width - 2) // 2
    return [j // pairs * width + 2 * (j % pairs) for j in range(vae.config.latent_channels)]


def encode(vae: AutoencoderKL, images: NDArray[np.uint8]) -> Tensor:
    """Return unscaled latents ``(n, 24, 8, 8)`` of pictures ``(n, 64, 64, 3)``.

    They are what ``vae.encode`` gives (error 1e-3), by one matrix product instead of its layers.
    """
    last = vae.encoder.down_blocks[-1].resnets[0].conv_shortcut
    project = last.weight[_carriers(vae), :_INPUTS, 0, 0].T
    shift, parts = last.bias[_carriers(vae)], []
    with torch.no_grad():
        for i in range(0, len(images), 1000):
            z = _patches(signed(images[i : i + 1000])) @ project + shift
            parts.append(z.permute(0, 3, 1, 2))
    return torch.cat(parts).contiguous()


def train_decoder(
    vae: AutoencoderKL,
    images: NDArray[np.uint8],
    latents: Tensor,
    folder: Path,
    steps: int,
) -> None:
    """Fit the decoder in place to undo the encoder; ``images`` are ``(n, 64, 64, 3)``."""
    vae.requires_grad_(False)
    params = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for p in params:
        p.requires_grad_(True)
    low, high = JITTER

    def loss(rng: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (BATCH,), generator=rng)
        z = latents[index]
        level = low + (high - low) * torch.rand(len(z), 1, 1, 1, generator=rng)
        z = z + level * torch.randn(z.shape, generator=rng)
        with faster():
            drawn = vae.decode(z).sample.float()
        e = drawn - signed(images[index.numpy()])
        edges = e.diff(dim=2).abs().mean() + e.diff(dim=3).abs().mean()
        return e.abs().mean() + 2 * e.square().mean() + 0.3 * edges

    schedule = Schedule(steps, 3e-3, warmup=30, decay=0.9)
    fit("decoder", vae, loss, schedule, folder, params=params, every=250)


def psnr(vae: AutoencoderKL, images: NDArray[np.uint8], latents: Tensor) -> Tensor:
    """Return each reconstruction's peak signal-to-noise ratio in dB, ``(n,)``."""
    parts = []
    with torch.no_grad():
        for i in range(0, len(images), 250):
            part = slice(i, i + 250)
            error = vae.decode(latents[part]).sample.clamp(-1, 1) - signed(images[part])
            parts.append(-10 * torch.log10(error.square().mean((1, 2, 3)) / 4))
    return torch.cat(parts)
