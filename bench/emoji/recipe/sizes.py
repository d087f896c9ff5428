"""The two sizes of emoji-sd that the recipe makes: the first, of 32 px, and the sharper one of 64 px."""

from __future__ import annotations

from dataclasses import dataclass

from bench.emoji.world import IMAGENETTE, OTHERS, Mix


@dataclass(frozen=True, slots=True)
class Size:
    """What differs between the sizes; latents are 8 x 8 in both.

    Args:
        pixels: Side of a picture.
        channels: The autoencoder's, a level each; every level but the last halves the picture.
        latents: Channels of a latent.
        whitening: Of the latents: 1 gives every principal component the same variance, 0 none of it.
        jitter: Least and most standard deviation of the noise on latents that the decoder learns from.
        batch: Pictures per step of the decoder.
        mix: What the scenes show.
        softened: How many scenes the judges see softened, too.
        none: Whether the judges learn to say "none" from pictures that show nothing they know.
        bf16: Whether steps run in bfloat16 where it is safe; faster where the processor has AMX.
        common: Share of a denoiser's steps that all of this size have in common: on scenes that show
            none of the tasks' concepts, so what follows may leave out any of them.
    """

    pixels: int
    channels: tuple[int, ...]
    latents: int
    whitening: float
    jitter: tuple[float, float]
    batch: int
    mix: Mix
    softened: int
    none: bool
    bf16: bool
    common: float

    @property
    def factor(self) -> int:
        """Pixels per latent, along one side."""
        return int(2 ** (len(self.channels) - 1))


FIRST = Size(
    pixels=32,
    channels=(16, 48, 64),
    latents=12,
    whitening=0.75,
    jitter=(0.05, 0.05),
    batch=32,
    mix=Mix(),
    softened=60_000,
    none=False,
    bf16=False,
    common=0.0,
)
SHARP = Size(
    pixels=64,
    channels=(32, 64, 192, 128),
    latents=24,
    whitening=0.5,
    jitter=(0.0, 0.15),
    batch=16,
    mix=Mix(second=0.25, seconds=(*IMAGENETTE, *OTHERS), styles=(40, 26, 17, 17)),
    softened=30_000,
    none=True,
    bf16=True,
    common=0.6,
)
SIZES = {size.pixels: size for size in (FIRST, SHARP)}
