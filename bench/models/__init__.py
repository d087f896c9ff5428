"""Models by name."""

from bench.models.checkpoints import load_part, read_tensors
from bench.models.clip import load_tokens, load_vision
from bench.models.diffusers import DiffusersModel
from bench.models.folders import save_folder
from bench.models.loading import load_model

__all__ = [
    "DiffusersModel",
    "load_model",
    "load_part",
    "load_tokens",
    "load_vision",
    "read_tensors",
    "save_folder",
]
