"""Looks after the cache: how big it is, what in it is damaged, what is old."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.core.errors import SpecError, UnknownNameError
from bench.store.artifacts import UNDRAWN, Artifacts

PARTS = {
    "erasures": "erased models, as what changed",
    "attacks": "attacked prompts",
    "images": "images",
    "features": "what is measured on images, as for FID",
    "work": "what plug-ins keep, and states of searches",
    "models": "pipelines that were given in memory",
    "records": "records of `bench.evaluate`",
}
"""What the cache holds, by folder."""
SEALED = ("erasures", "attacks", "images", "features")


@dataclass(frozen=True, slots=True)
class Usage:
    """How much a part of the cache holds.

    Args:
        part: Its folder.
        about: What is in it.
        files: Number of files.
        size: Bytes.
    """

    part: str
    about: str
    files: int
    size: int


def usage(cache: Artifacts) -> list[Usage]:
    """Return how much is in each part of the cache."""
    found = []
    for part, about in PARTS.items():
        sizes = [size for _, size, _ in _files(cache, part)]
        found.append(Usage(part, about, len(sizes), sum(sizes)))
    return found


def damaged(cache: Artifacts) -> Iterator[Path]:
    """Yield the files whose content is not what was written; they would be made again when needed."""
    for part in SEALED:
        yield from (path for path, _, _ in _files(cache, part) if not cache.intact(path))


def prune(cache: Artifacts, before: int, parts: list[str], *, really: bool = True) -> Usage:
    """Delete what was not written since a time, and return how much that was.

    What is deleted is made again when a run needs it. Records are in no part of it.

    Args:
        cache: The cache.
        before: A time in ns, as in ``st_mtime_ns``.
        parts: Folders of the cache; none for all of them but records.
        really: Or only count.

    Raises:
        UnknownNameError: There is no such part.
        SpecError: Records were asked for.
    """
    for part in parts:
        if part not in PARTS:
            raise UnknownNameError("part of the cache", part, PARTS)
    if "records" in parts:
        raise SpecError("records are results, and are not pruned: delete their folder yourself")
    for mark in (cache.root / UNDRAWN).glob("*") if really else ():  # what it needs may go now
        mark.unlink(missing_ok=True)
    number, total = 0, 0
    for part in parts or [part for part in PARTS if part != "records"]:
        for path, size, written in _files(cache, part):
            if written < before:
                number, total = number + 1, total + size
                if really:
                    path.unlink(missing_ok=True)
    return Usage("", "", number, total)


def _files(cache: Artifacts, part: str) -> Iterator[tuple[Path, int, int]]:
    """Yield a part's files, their bytes and when they were written; another process may delete some."""
    for path in sorted((cache.root / part).rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            if path.is_file() and not path.name.endswith(".tmp"):
                yield path, about.st_size, about.st_mtime_ns
