"""Weights and data that are not shipped: what they are, where they come from, whether they are here.

A judge or a prompt set names the assets it needs; they are looked for, in this order, at the path given
with ``--asset NAME=PATH``, in the installed package that carries them, and in the hub's cache. Nothing is
fetched unless ``bench assets --fetch`` says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from bench.errors import AssetError, SpecError, UnknownNameError
from bench.hub import cached, hub_source


@dataclass(frozen=True, slots=True)
class Asset:
    """One file or folder.

    Args:
        about: What it is, and for what.
        source: Where it comes from: as :mod:`bench.hub` reads it, a web address, or words.
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


ASSETS: dict[str, Asset] = {}


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
    if found := here(asset):
        return found
    size = f", {asset.size} MB" if asset.size else ""
    raise AssetError(
        f"{name} is not here ({asset.about}{size}, from {asset.source}): "
        f"give --asset {name}=/path/to/{asset.form}, or `bench assets --fetch {name}`"
    )


def here(asset: Asset) -> Path | None:
    """Return where an asset is without the user's help: installed, or in the hub's cache."""
    if found := _installed(asset):
        return found
    source = hub_source(asset.source)
    return cached(source) if source else None


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
