"""Which models there are, where their weights come from, and whether they are intact. No torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.errors import AssetError, SpecError, UnknownNameError
from bench.types import World


@dataclass(frozen=True, slots=True)
class Sampling:
    """How images are made: sampler, denoising steps, side length in pixels."""

    sampler: str
    steps: int
    size: int


EMOJI_WEIGHTS = Path(__file__).resolve().parent / "emoji" / "weights"
EMOJI = Sampling("ddim", 20, 32)
PHOTO = Sampling("lms", 50, 512)
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One known model: where it comes from and how it draws."""

    world: World
    sampling: Sampling
    source: str
    about: str


MODELS = {
    "emoji-sd": ModelInfo(
        "emoji", EMOJI, str(EMOJI_WEIGHTS / "model"), "tiny, trained, shipped (default)"
    ),
    "tiny-random": ModelInfo(
        "emoji", EMOJI, "random", "random weights, emoji-sd's tokenizer; tests"
    ),
    "sd14": ModelInfo(
        "photo", PHOTO, "CompVis/stable-diffusion-v1-4", "Stable Diffusion v1.4 (hub)"
    ),
}


def model_info(name: str) -> ModelInfo:
    """Return what is known of a model, given by name or as a diffusers folder.

    Raises:
        UnknownNameError: It is neither.
    """
    if name in MODELS:
        return MODELS[name]
    if (Path(name) / "model_index.json").is_file():
        config = json.loads((Path(name) / "unet" / "config.json").read_text())
        small = int(config["sample_size"]) <= 16
        world: World = "emoji" if small else "photo"
        return ModelInfo(world, EMOJI if small else PHOTO, name, "a diffusers folder")
    if Path(name).exists():
        raise SpecError(f"{name} is no diffusers model: expected a folder with model_index.json")
    raise UnknownNameError("model", name, MODELS)


def check_shipped(folder: Path = EMOJI_WEIGHTS) -> None:
    """Compare the shipped weights with their digests.

    Raises:
        AssetError: A file is missing or has changed.
    """
    listing = folder / "digests.json"
    if not listing.exists():
        raise AssetError(
            f"emoji-sd's weights are missing: expected {listing}; reinstall the package"
        )
    for name, expected in json.loads(listing.read_text()).items():
        path = folder / name
        if not path.exists():
            raise AssetError(
                f"emoji-sd's weights are missing: expected {path}; reinstall the package"
            )
        got = file_digest(path)
        if got != expected:
            raise AssetError(
                f"{path} has changed: expected sha256 {expected[:12]}..., got {got[:12]}...; "
                "reinstall the package"
            )


def file_digest(path: Path) -> str:
    """Return a file's sha256."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_model(name: str) -> None:
    """Check what a model needs of the shipped weights, before the first step of a run."""
    if model_info(name).source == "random" or name == "emoji-sd":
        check_shipped()


@cache
def revision(name: str) -> str:
    """Return a short digest of a model's weights, or its hub name where they are not local files."""
    info = model_info(name)
    if info.source == "random":
        return "random-0"
    folder = Path(info.source)
    if not folder.is_dir():
        return info.source
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".safetensors", ".json", ".bin"}:
            total.update(f"{path.relative_to(folder)} {file_digest(path)}\n".encode())
    return total.hexdigest()[:16]
