"""External: a denoiser or text encoder that was erased elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from bench import Card, Concept, Context, Model, SpecError


@dataclass(frozen=True)
class External:
    """Weights from a file, as papers publish them: all tensors, only the trained ones, or LoRA layers.

    Attacks still get the base model as the original, and the record says what the file changed. ``--unet``
    and ``--text-encoder`` of ``bench run`` are short forms of this method.

    Args:
        unet: The denoiser: a safetensors file, a torch file of tensors, or a diffusers folder.
        text_encoder: The text encoder, in the same formats.
    """

    card: ClassVar = Card("External weights", paper="")

    unet: Path | None = None
    text_encoder: Path | None = None

    def __post_init__(self) -> None:
        if self.unet is None and self.text_encoder is None:
            raise ValueError("expected unet=PATH or text_encoder=PATH, got neither")

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Load the files into the model."""
        from bench.models import load_part  # slow; not needed to plan a run

        parts: tuple[Literal["unet", "text_encoder"], ...] = ("unet", "text_encoder")
        changed = 0
        for part in parts:
            path: Path | None = getattr(self, part)
            if path is None:
                continue
            loaded = load_part(model.pipe, part, path)
            changed += loaded.changed
            model.notes[f"{part}_tensors"] = loaded.tensors
            if loaded.layout == "LoRA":
                if loaded.elsewhere and self.unet != self.text_encoder:
                    raise SpecError(  # one training made both: one half alone is another method
                        f"{path} has {loaded.elsewhere} tensors for another part, too: give the file "
                        "with both --unet and --text-encoder"
                    )
                model.notes[f"{part}_layout"] = loaded.layout
            if loaded.elsewhere:
                model.notes[f"{part}_elsewhere"] = loaded.elsewhere
        if not changed:
            model.notes["unchanged"] = True
        return model
