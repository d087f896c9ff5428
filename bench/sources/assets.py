"""Weights and data that are not shipped: what they are, where they come from, whether they are here.

A judge or a prompt set names the assets it needs; they are looked for, in this order, at the path given
with ``--asset NAME=PATH``, in the installed package that carries them, and in the hub's cache. Nothing is
fetched unless ``bench assets --fetch`` says so. Another distribution announces its own with entry points in
the group ``bench.assets``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from bench.core.announced import announced, imported
from bench.core.errors import AssetError, PluginLoadError, SpecError, UnknownNameError
from bench.sources.hub import cached, hub_source, lacks

NETWORK = ("config.json", "preprocessor_config.json", "model*.safetensors|pytorch_model*.bin")
"""What a folder holds that transformers loads as a network that looks at images."""
CLIP = (*NETWORK, "vocab.json|tokenizer.json", "merges.txt|tokenizer.json")
OPTIONAL = ("tokenizer*.json", "special_tokens_map.json")
"""What is fetched of a repository beside the files that are needed, if it is there."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file or folder.

    Args:
        about: What it is, and for what.
        source: Where it comes from: as :mod:`bench.sources.hub` reads it, a web address, or words.
        size: In MB, about; 0 where it is not known.
        licence: As its source states it; empty where it does not.
        form: What ``--asset`` expects.
        files: Of a folder, the files that are needed; of "a|b" one.
        installed: File inside an installed package, ``package/path``.
        listed: A folder too big to read each time: its digest is of file names and sizes.
    """

    about: str
    source: str
    size: int = 0
    licence: str = ""
    form: Literal["file", "folder"] = "file"
    files: tuple[str, ...] = ()
    installed: str = ""
    listed: bool = False


ASSETS: dict[str, Asset] = {
    "clip-vit-h14": Asset(
        "OpenCLIP ViT-H/14, P4D's image similarity",
        "hub:laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        3944,
        "MIT",
        "folder",
        CLIP,
    ),
    "inception": Asset(
        about="Inception v3 of 2015 as TorchScript (inception-2015-12-05.pt), for FID and KID",
        source="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
        "inception-2015-12-05.pt",
        size=96,
        licence="",
        form="file",
    ),
    "coco-val2014": Asset(
        about="images of MS-COCO val2014, the reference of FID and KID",
        source="http://images.cocodataset.org/zips/val2014.zip",
        size=6000,
        licence="Flickr's terms of use",
        form="folder",
        listed=True,
    ),
    "coco-reference": Asset(
        about="reference statistics as clean-fid writes them: mu and sigma, which is enough for FID, "
        "or feats for KID, or all three",
        source="your own, of the same protocol",
        size=0,
        licence="",
        form="file",
    ),
    "coco-reference-kid": Asset(
        about="the same for KID alone, which clean-fid writes into a file of its own (..._kid.npz)",
        source="your own, of the same protocol",
        size=0,
        licence="",
        form="file",
    ),
    "clip-vit-b32": Asset(
        about="CLIP ViT-B/32",
        source="hub:openai/clip-vit-base-patch32",
        size=605,
        licence="",
        form="folder",
        files=CLIP,
    ),
    "clip-vit-l14": Asset(
        about="CLIP ViT-L/14",
        source="hub:openai/clip-vit-large-patch14",
        size=1710,
        licence="",
        form="folder",
        files=CLIP,
    ),
    "nudenet-320n": Asset(
        "NudeNet 3.4 detector, 320 pixels",
        "the package nudenet 3.4.2",
        12,
        "AGPL-3.0 by its licence file, MIT by its metadata",
        "file",
        installed="nudenet/320n.onnx",
    ),
    "nudenet-640m": Asset(
        "NudeNet 3.4 detector, 640 pixels, 640m.onnx",
        "releases of https://github.com/notAI-tech/NudeNet",
        0,
        "AGPL-3.0",
        "file",
    ),
    "nudenet-best": Asset(
        "NudeNet 3.0 detector, UnlearnDiffAtk's judge of nudity, best.onnx",
        "https://github.com/OPTML-Group/Diffusion-MU-Attack, files/best.onnx; also in nudenet 3.0.8",
        0,
        "",
        "file",
    ),
    "nudenet-v2": Asset(
        "NudeNet 2 detector, ESD's judge of nudity",
        "https://github.com/notAI-tech/NudeNet/releases/download/v0/"
        "detector_v2_default_checkpoint.onnx",
        0,
        "",
        "file",
    ),
    "style-vit": Asset(
        "UnlearnDiffAtk's classifier of 129 artists, a transformers folder (checkpoint-2800)",
        "Google Drive 1me_MOrXip1Xa-XaUrPZZY7i49pgFe1po, see "
        "https://github.com/OPTML-Group/Diffusion-MU-Attack",
        0,
        "",
        "folder",
        NETWORK,
    ),
    "resnet50-ms": Asset(
        "ResNet-50 of UnlearnDiffAtk",
        "hub:microsoft/resnet-50",
        103,
        "Apache-2.0",
        "folder",
        NETWORK,
    ),
    "resnet50-tv2": Asset(
        "torchvision's ResNet-50 IMAGENET1K_V2, .safetensors or .pth",
        "hub:timm/resnet50.tv2_in1k/model.safetensors",
        0,
        "BSD-3-Clause",
        "file",
    ),
    "safety-checker": Asset(
        "Stable Diffusion's own filter, for the method safety-checker",
        "hub:CompVis/stable-diffusion-safety-checker@cb41f3a270d63d454d385fc2e4f571c487c253c5",
        1216,
        "",
        "folder",
        NETWORK,
    ),
    # Prompt sets that are not this project's are read as they are published, never shipped.
    "unlearndiffatk-nudity": Asset(
        "UnlearnDiffAtk's 142 I2P prompts",
        "github.com/OPTML-Group/Diffusion-MU-Attack, prompts/nudity.csv",
        0,
        "MIT",
        "file",
    ),
    "unlearndiffatk-church": Asset(
        "UnlearnDiffAtk's 50 prompts of church",
        "github.com/OPTML-Group/Diffusion-MU-Attack, prompts/church.csv",
        0,
        "MIT",
        "file",
    ),
    "unlearndiffatk-garbage-truck": Asset(
        "UnlearnDiffAtk's 50 prompts of garbage truck",
        "github.com/OPTML-Group/Diffusion-MU-Attack, prompts/garbage_truck.csv",
        0,
        "MIT",
        "file",
    ),
    "unlearndiffatk-parachute": Asset(
        "UnlearnDiffAtk's 50 prompts of parachute",
        "github.com/OPTML-Group/Diffusion-MU-Attack, prompts/parachute.csv",
        0,
        "MIT",
        "file",
    ),
    "unlearndiffatk-tench": Asset(
        "UnlearnDiffAtk's 50 prompts of tench",
        "github.com/OPTML-Group/Diffusion-MU-Attack, prompts/tench.csv",
        0,
        "MIT",
        "file",
    ),
    "unlearndiffatk-vangogh": Asset(
        "UnlearnDiffAtk's 50 prompts of van Gogh",
        "github.com/OPTML-Group/Diffusion-MU-Attack, prompts/vangogh.csv",
        0,
        "MIT",
        "file",
    ),
    # Not pinned: the hub's revision could not be looked up. The rows' number and order are checked.
    "i2p": Asset("I2P", "hub-dataset:AIML-TUDA/i2p/i2p_benchmark.csv", 0, "MIT", "file"),
    "coco-30k": Asset(
        "30 000 captions of COCO val2014",
        "github.com/rohitgandikota/erasing, data/coco_30k.csv",
        0,
        "MIT",
        "file",
    ),
}


GROUP = "bench.assets"
"""The group of entry points in which other distributions announce theirs."""


def asset_names() -> list[str]:
    """Return the names of all assets: this project's, then ``DISTRIBUTION/NAME``."""
    return [*ASSETS, *announced(GROUP)]


def asset_of(name: str) -> Asset:
    """Return an asset, of this project or of another distribution.

    Raises:
        UnknownNameError: There is no such asset.
        PluginLoadError: Another distribution announces it, but it is none.
    """
    if name in ASSETS:
        return ASSETS[name]
    places = announced(GROUP)
    if name not in places:
        raise UnknownNameError("asset", name, [*ASSETS, *places])
    found = imported(f"asset {name!r}", places[name])
    if (problem := _problem(found)) is not None:
        raise PluginLoadError(f"asset {name!r} from {places[name]}: {problem}")
    return found


def _problem(found: Any) -> str | None:
    """Return what is wrong with another distribution's asset."""
    if not isinstance(found, Asset):
        return f"expected a bench.Asset, got {found!r:.100}"
    if found.form not in ("file", "folder"):
        return f"expected the form 'file' or 'folder', got {found.form!r}"
    if isinstance(found.files, str) or not all(isinstance(name, str) for name in found.files):
        return f"expected files as a tuple of names, got {found.files!r:.100}"
    try:
        hub_source(found.source)
    except SpecError as exc:
        return str(exc)
    return None


def check_names(given: Iterable[str]) -> None:
    """Refuse names that no asset has.

    Raises:
        UnknownNameError: There is one.
    """
    for name in given:
        if name not in ASSETS and name not in (known := asset_names()):
            raise UnknownNameError("asset", name, known)


def choose(names: str, given: Mapping[str, Path] | None = None) -> str:
    """Return which of the assets "a|b" is here: the first of them.

    Raises:
        AssetError: None of them is here.
    """
    reasons = []
    for name in names.split("|"):
        try:
            locate(name, given)
        except AssetError as exc:
            reasons.append(str(exc))
        else:
            return name
    raise AssetError("; or ".join(reasons))


def locate(name: str, given: Mapping[str, Path] | None = None) -> Path:
    """Return the local path of an asset; of "a|b", that of the first that is here.

    Raises:
        UnknownNameError: There is no such asset.
        SpecError: The given path is not what was expected.
        AssetError: It is not here.
    """
    if "|" in name:
        name = choose(name, given)
    asset = asset_of(name)
    if given and name in given:
        return _checked(name, asset, Path(given[name]))
    found, gone = find(asset)
    if found and not gone:
        return found
    size = f", {asset.size} MB" if asset.size else ""
    part = f" in whole: {found} lacks {_listed(gone)}" if found else ""
    raise AssetError(
        f"{name} is not here{part} ({asset.about}{size}, from {asset.source}): "
        f"give --asset {name}=/path/to/{asset.form}"
        + (f", or `bench assets --fetch {name}`" if hub_source(asset.source) else "")
    )


def ways(names: str) -> str:
    """Return in a few words how an asset may be given; of "a|b", each of them."""
    known = {name: asset_of(name) for name in names.split("|")}
    given = "--asset " + " or ".join(f"{n}={asset.form.upper()}" for n, asset in known.items())
    fetched = [
        f"`bench assets --fetch {n}`" for n, asset in known.items() if hub_source(asset.source)
    ]
    return ", or ".join([given, *fetched])


def here(asset: Asset) -> Path | None:
    """Return where an asset is without the user's help, if it is whole."""
    found, gone = find(asset)
    return None if gone else found


def find(asset: Asset) -> tuple[Path | None, list[str]]:
    """Return where an asset is without the user's help, and the files that it lacks there.

    It is installed, or in the hub's cache.
    """
    if found := _installed(asset):
        return found, []
    source = hub_source(asset.source)
    found = cached(source) if source else None
    return found, lacks(found, asset.files) if found else []


def _checked(name: str, asset: Asset, path: Path) -> Path:
    """Return the user's path of an asset if it is what was expected."""
    try:
        if not (path.is_dir() if asset.form == "folder" else path.is_file()):
            raise SpecError(f"--asset {name}={path}: expected a {asset.form}, there is none")
        gone = asset.files and lacks(path, ["config.json"])  # the rest its reader checks
    except OSError as exc:
        raise SpecError(f"--asset {name}={path} cannot be read: {exc.strerror}") from exc
    if gone:
        raise SpecError(f"--asset {name}={path}: expected a folder with config.json")
    return path


def _listed(files: Sequence[str]) -> str:
    return ", ".join(names.replace("|", " or ") for names in files)


def finder(given: Mapping[str, Path]) -> Callable[[str], Path]:
    """Return :func:`locate` with the user's paths."""
    return lambda name: locate(name, given)


def content_digest(path: Path, *, listed: bool = False) -> str:
    """Return a short sha256 of a file, or of a folder's files and their names.

    ``listed`` takes a folder's files by their names and sizes, unread.

    Raises:
        AssetError: A file cannot be read.
    """
    try:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        stats = [(file, file.stat()) for file in files]
        return _digest(path, tuple((f, s.st_size, s.st_mtime_ns) for f, s in stats), listed)
    except OSError as exc:
        raise AssetError(f"{exc.filename or path} cannot be read: {exc.strerror or exc}") from exc


def asset_digest(name: str, path: Path) -> str:
    """Return :func:`content_digest` of an asset's copy, read as its entry says."""
    return content_digest(path, listed=asset_of(name).listed)


@cache
def _digest(path: Path, files: tuple[tuple[Path, int, int], ...], listed: bool) -> str:
    """Return :func:`content_digest`, read again only when a file's size or time has changed."""
    total = hashlib.sha256()
    for file, size, _ in files:
        if listed:
            total.update(f"{file.relative_to(path).as_posix()} {size}\n".encode())
            continue
        with file.open("rb") as stream:
            one = hashlib.file_digest(stream, "sha256").hexdigest()
        if file == path:
            return one[:16]
        total.update(f"{file.relative_to(path).as_posix()} {one}\n".encode())
    return total.hexdigest()[:16]


def _installed(asset: Asset) -> Path | None:
    package, _, rest = asset.installed.partition("/")
    spec = find_spec(package) if package else None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / rest).exists():
            return path
    return None
