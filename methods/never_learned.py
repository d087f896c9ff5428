"""Never learned: the denoiser that the same recipe gives on data without the concept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench import Card, Concept, Context, IncompatibleError, Model
from bench.emoji import NEVER_LEARNED, PATH

_FILE = "diffusion_pytorch_model.safetensors"
_MODEL = "emoji-sd"
_ONLY = f"never-learned is for --model {_MODEL}: no other was made so"


@dataclass(frozen=True)
class NeverLearned:
    """Take the denoiser that never saw the concept: the best that an erasure can reach.

    Research on unlearning calls it the retrained model, and measures against it. It answers what an
    attack's rate would be if nothing were left to bring back. Of Stable Diffusion nobody has one; of
    emoji-sd there is one for each of the six concepts. Each shares its first training steps with the model
    itself, in which no scene shows any of the tasks' concepts; in the rest of its own the one
    concept is left out, pictures and captions. Text encoder and autoencoder are the model's: both saw the
    concept.
    """

    card: ClassVar = Card("Never learned: trained without the concept", "this project, bench/emoji")

    def check_plan(self, concept: Concept, model: str) -> None:
        """Refuse a concept of which no denoiser is shipped, and other models; one in files is read later.

        Raises:
            IncompatibleError: It is one of these.
        """
        if model != _MODEL and not Path(model).exists():
            raise IncompatibleError(_ONLY)
        _shipped(concept)

    def erase(self, model: Model, concept: Concept, ctx: Context) -> Model:
        """Load the denoiser.

        Raises:
            IncompatibleError: The model is not emoji-sd, or no such denoiser is shipped for the concept.
        """
        from safetensors.torch import load_file  # slow; not needed to plan a run

        if not _is(model, PATH):
            raise IncompatibleError(_ONLY)
        weights = {name: tensor.float() for name, tensor in load_file(_shipped(concept)).items()}
        model.pipe.unet.load_state_dict(weights)
        return model


def _shipped(concept: Concept) -> Path:
    """Return the file of the denoiser that never saw a concept."""
    known = {path.parent.name: path for path in NEVER_LEARNED.glob(f"*/{_FILE}")}
    path = known.get(concept.name.replace(" ", "-"))
    if path is None:
        raise IncompatibleError(
            f"no model that never learned {concept.name!r} is shipped, but: {', '.join(sorted(known))}"
        )
    return path


def _is(model: Model, folder: Path) -> bool:
    """Return whether a model's denoiser is that of a folder, by its first layer."""
    import torch
    from safetensors import safe_open

    with safe_open(folder / "unet" / _FILE, "pt") as file:
        theirs = file.get_tensor("conv_in.weight").float()
    ours = model.pipe.unet.conv_in.weight.float().cpu()
    return ours.shape == theirs.shape and torch.equal(ours, theirs)
