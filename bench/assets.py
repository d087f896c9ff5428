"""Weights and data that are not shipped: what they are, where they come from, whether they are here.

A judge or a prompt set names the assets it needs; they are looked for, in this order, at the path given
with ``--asset NAME=PATH``, in the installed package that carries them, and in the hub's cache. Nothing is
fetched unless ``bench assets --fetch`` says so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from bench.errors import AssetError, SpecError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Asset:
    """One file or folder.

    Args:
        about: What it is, and for what.
        source: Where it comes from: ``hub:owner/name``, ``hub:owner/name/file``,
            ``hub-dataset:owner/name/file``, each with or without ``@revision``, a web address, or words.
        size: In MB, as published; 0 where it is not stated.
        licence: As its source states it; empty where it does not.
        form: What ``--asset`` expects.
        installed: File inside an installed package, ``package/path``.
    """

    about: str
    source: str
    size: int
    licence: str
    form: Literal["file", "folder"]
    installed: str = ""


# Prompt sets that are not this project's are read as they are published, never shipped.
ASSETS: dict[str, Asset] = {
    "clip-vit-b32": Asset("CLIP ViT-B/32", "hub:openai/clip-vit-base-patch32", 605, "", "folder"),
    "unlearndiffatk-nudity": Asset(
        "UnlearnDiffAtk's 142 I2P prompts",
        "github.com/OPTML-Group/Diffusion-MU-Attack, prompts/nudity.csv",
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


def locate(name: str, given: Mapping[str, Path] | None = None) -> Path:
    """Return the local path of an asset.

    Raises:
        UnknownNameError: There is no such asset.
        SpecError: The given path is not what was expected.
        AssetError: It is not here.
    """
    if name not in ASSETS:
        raise UnknownNameError("asset", name, ASSETS)
    asset = ASSETS[name]
    if given and name in given:
        path = Path(given[name])
        if not (path.is_dir() if asset.form == "folder" else path.is_file()):
            raise SpecError(f"--asset {name}={path}: expected a {asset.form}, there is none")
        return path
    for find in (_installed, _cached):
        if found := find(asset):
            return found
    size = f", {asset.size} MB" if asset.size else ""
    raise AssetError(
        f"{name} is not here ({asset.about}{size}, from {asset.source}): "
        f"give --asset {name}=/path/to/{asset.form}, or `bench assets --fetch {name}`"
    )


def finder(given: Mapping[str, Path]) -> Callable[[str], Path]:
    """Return :func:`locate` with the user's paths."""
    return lambda name: locate(name, given)


@cache
def digest(path: Path) -> str:
    """Return a short sha256 of a file, or of a folder's files and their names."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        with file.open("rb") as stream:
            one = hashlib.file_digest(stream, "sha256").hexdigest()
        if path.is_file():
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


@dataclass(frozen=True, slots=True)
class HubSource:
    """What a ``hub:`` or ``hub-dataset:`` source names; without ``file`` it is the whole repository."""

    kind: Literal["model", "dataset"]
    repo: str
    file: str = ""
    revision: str | None = None


_HUB = re.compile(r"hub(-dataset)?:([^/@]+/[^/@]+)(?:/([^@]+))?(?:@(.+))?")


def hub_source(source: str) -> HubSource | None:
    """Return the parts of a hub source, or ``None`` if the source is something else.

    Raises:
        SpecError: It begins like a hub source but is none.
    """
    if not source.startswith(("hub:", "hub-dataset:")):
        return None
    if not (match := _HUB.fullmatch(source)):
        raise SpecError(f"expected hub:owner/name, with /file and @revision or not, got {source!r}")
    dataset, repo, file, revision = match.groups()
    return HubSource("dataset" if dataset else "model", repo, file or "", revision)


def _cached(asset: Asset) -> Path | None:
    """Return what the hub's client has kept, without asking the network."""
    if not (hub := hub_source(asset.source)):
        return None
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    where: dict[str, Any] = {"repo_type": hub.kind, "revision": hub.revision}
    if hub.file:
        found = try_to_load_from_cache(hub.repo, hub.file, **where)
        return Path(found) if isinstance(found, str) else None
    try:
        return Path(snapshot_download(hub.repo, local_files_only=True, **where))
    except LocalEntryNotFoundError:
        return None
