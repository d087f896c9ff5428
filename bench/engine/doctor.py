"""Looks over what a run needs of this machine, before the run does."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from bench.core.errors import AssetError, BenchError, StoreError
from bench.engine.provenance import PROJECT
from bench.plugins import registry
from bench.sources import catalog
from bench.store.artifacts import Artifacts
from bench.store.files import probe
from bench.tasks.inventory import inventory

State = Literal["ok", "note", "wrong"]
GB = 1024**3
ROOM = 5 * GB
"""Less free space than this is said: one erased Stable Diffusion takes up to 3.3 GB."""
KNOWN_BAD = ((("scipy>=1.18", "clean-fid<=0.1.35"), "FID cannot be computed: install scipy<1.18"),)
"""Packages that do not work together, and what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        about: What.
        state: "note" is worth knowing, "wrong" has to be changed.
        says: What was found, and what to do.
    """

    about: str
    state: State
    says: str


def examine(results: Path) -> Iterator[Finding]:
    """Yield what is found of versions, devices, disk, plug-ins, models and assets.

    Args:
        results: Folder of records.
    """
    yield Finding(
        "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    yield from _packages()
    yield from _together()
    yield from _devices()
    yield from _disk("cache", Artifacts().root, "set BENCH_CACHE")
    yield from _disk("results", results.absolute(), "give --results")
    yield from _plugins()
    yield from _files()


def _packages() -> Iterator[Finding]:
    """Yield the project's own version and those of the packages that it needs."""
    try:
        yield Finding(PROJECT, "ok", version(PROJECT))
        needed = [Requirement(text) for text in requires(PROJECT) or ()]
    except PackageNotFoundError:
        yield Finding(PROJECT, "note", "not installed as a package; versions are not checked")
        return
    for need in needed:
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        have = _version(need.name)
        if not have:
            yield Finding(need.name, "wrong", f"not installed; expected {need}")
        elif not need.specifier.contains(have, prereleases=True):
            yield Finding(need.name, "wrong", f"{have}; expected {need}")
        else:
            yield Finding(need.name, "ok", have)


def _together() -> Iterator[Finding]:
    for pair, advice in KNOWN_BAD:
        needs = [Requirement(text) for text in pair]
        have = [_version(need.name) for need in needs]
        if all(v and n.specifier.contains(v) for v, n in zip(have, needs, strict=True)):
            names = " with ".join(f"{n.name} {v}" for n, v in zip(needs, have, strict=True))
            yield Finding(names, "wrong", advice)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("cpu", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}")
    for n in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(n)
        yield Finding(f"cuda:{n}", "ok", f"{card.name}, {card.total_memory / GB:.0f} GB")
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "Apple's GPU")
    elif not torch.cuda.is_available():
        yield Finding("gpu", "note", "none; Stable Diffusion needs one, the emoji world does not")


def _disk(about: str, folder: Path, advice: str) -> Iterator[Finding]:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        probe(folder if folder.exists() else there)
        free = shutil.disk_usage(there).free
    except (OSError, StoreError) as exc:
        yield Finding(about, "wrong", f"{folder}: {exc}; {advice}")
        return
    says = f"{folder}, {free / GB:.0f} GB free"
    yield Finding(about, "ok" if free >= ROOM else "note", says)


def _plugins() -> Iterator[Finding]:
    """Yield how many plug-ins of each kind there are, and which cannot be loaded."""
    for kind in registry.KINDS:
        try:
            names = registry.names(kind)
        except BenchError as exc:  # another package hides ours
            yield Finding(kind, "wrong", str(exc))
            continue
        yield Finding(kind, "ok", f"{len(names)} known")
        for name in names:
            try:
                registry.load(kind, name)
            except BenchError as exc:
                yield Finding(f"{kind} {name}", "wrong", str(exc))


def _files() -> Iterator[Finding]:
    try:
        catalog.check_shipped()
        yield Finding("emoji-sd", "ok", "its weights are here and whole")
    except AssetError as exc:
        yield Finding("emoji-sd", "wrong", str(exc))
    items = list(inventory({}))
    here = [item.name for item in items if item.path]
    yield Finding("assets", "ok", f"{len(here)} of {len(items)} here; `bench assets` lists them")
    for item in items:
        if item.partly:
            yield Finding(item.name, "note", f"here in part: `bench assets --fetch {item.name}`")
