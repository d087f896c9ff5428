"""External: a denoiser or text encoder that was erased elsewhere, put into the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

from bench import AssetError, Card, Concept, Context, Model, SpecError, World
from bench.assets import digest


@dataclass(frozen=True)
class External:
    """Weights from a file: whole or only the trained tensors, as papers publish them.

    The base model stays the original that attacks may use, and the record holds what the file changed.
    ``--unet`` and ``--text-encoder`` of ``bench run`` are short for this method.

    Args:
        unet: The denoiser: a safetensors file, a torch file of tensors, or a diffusers folder.
        text_encoder: The text encoder, likewise.
        unet_digest: Of the denoiser's file; filled in.
        text_encoder_digest: Of the text encoder's file; filled in.
    """

    card: ClassVar = Card("External weights", paper="")

    unet: str = ""
    text_encoder: str = ""
    unet_digest: str = ""
    text_encoder_digest: str = ""

    def resolve(self, concept: Concept, world: World) -> Self:
        """Return the method with the digests of its files."""
        if not self.unet and not self.text_encoder:
            raise SpecError("external: expected unet=PATH or text_encoder=PATH, got neither")
        return replace(
            self,
            unet_digest=_digest("unet", self.unet, self.unet_digest),
            text_encoder_digest=_digest(
                "text_encoder", self.text_encoder, self.text_encoder_digest
            ),
        )

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Load the files into the model."""
        from bench.models import load_part  # slow; not needed to plan a run

        full = self.resolve(concept, model.world)
        parts: tuple[Literal["unet", "text_encoder"], ...] = ("unet", "text_encoder")
        for part in parts:
            if path := getattr(full, part):
                model.notes[f"{part}_tensors"] = load_part(model.pipe, part, Path(path))
        return model


def _digest(part: str, path: str, expected: str) -> str:
    """Return a file's digest, which must be the expected one if there is one."""
    if not path:
        return ""
    if not Path(path).exists():
        raise SpecError(f"external: {part}={path}: expected a file or folder, there is none")
    got = digest(Path(path))
    if expected not in {"", got}:
        raise AssetError(f"{path} has changed: expected digest {expected}, got {got}")
    return got
