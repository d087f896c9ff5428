"""The cache: parts of cells, each under its own key."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from bench.core.errors import StoreError
from bench.store.files import probe, write, write_parts

if TYPE_CHECKING:
    from filelock import FileLock

log = logging.getLogger("bench")
_SEAL = hashlib.sha256().digest_size * 2
_PIECE = 2**23
UNDRAWN = "undrawn"
"""The folder of marks of pictures that are still to be drawn."""


class Artifacts:
    """The cache: erasures, attacked prompts and images under their own keys. It may be deleted.

    A file ends with a seal: a digest of its content and of its path, which is its key. A file whose seal is
    wrong, because it is damaged or was copied from elsewhere, counts as missing, and a warning says so.

    Args:
        root: The folder; ``$BENCH_CACHE`` or the platform's cache folder by default.
        since: Files that were written before count as missing, in ns as in ``st_mtime_ns``.
    """

    def __init__(self, root: Path | None = None, since: int = 0) -> None:
        default = os.environ.get("BENCH_CACHE") or platformdirs.user_cache_dir("erasure-bench")
        self.root, self.since = Path(root or default).absolute(), since

    def check_writable(self) -> None:
        """Fail now rather than after an hour of work.

        Raises:
            StoreError: Nothing can be written to the folder.
        """
        try:
            probe(self.root)
        except StoreError as exc:
            raise StoreError(f"{exc} with BENCH_CACHE") from exc

    def save(self, path: Path, data: bytes) -> None:
        """Write a file of the cache with its seal.

        Raises:
            StoreError: It cannot be written.
        """
        self.save_parts(path, [data])

    def save_parts(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        """Write a file of the cache with its seal, part by part.

        Raises:
            StoreError: It cannot be written.
        """
        write_parts(path, self._sealed(path, parts))

    def content(self, path: Path) -> Iterator[bytes]:
        """Yield what was saved in a file, in pieces of some megabytes, without asking for its seal."""
        with path.open("rb") as stream:
            left = os.fstat(stream.fileno()).st_size - _SEAL
            while left > 0:
                yield stream.read(min(left, _PIECE))
                left -= _PIECE

    def load(self, path: Path) -> bytes | None:
        """Return what was saved in a file, or ``None`` if it is missing or its seal is wrong."""
        try:
            with path.open("rb") as stream:
                about = os.fstat(stream.fileno())
                data = stream.read(max(0, about.st_size - _SEAL))
                seal = stream.read()
        except FileNotFoundError:
            return None
        except OSError as exc:
            log.warning("made again: %s cannot be read (%s)", path, exc.strerror)
            return None
        if about.st_mtime_ns < self.since:
            return None
        if seal != self._seal(path, data):
            log.warning("made again: %s is damaged, or is not what was kept there", path)
            return None
        return data

    def intact(self, path: Path) -> bool:
        """Say whether a file that was saved has its seal; one that cannot be read has none."""
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            return data[-_SEAL:] == self._seal(path, data[:-_SEAL])
        return False

    def keep(self, path: Path, make: Callable[[], bytes]) -> bytes:
        """Return what is kept in a file; if it is missing, make it now and keep it."""
        data = self.load(path)
        if data is None:
            data = make()
            self.save(path, data)
        return data

    def _seal(self, path: Path, data: bytes) -> bytes:
        *_, seal = self._sealed(path, [data])
        return bytes(seal)

    def _sealed(
        self, path: Path, parts: Iterable[bytes | memoryview]
    ) -> Iterator[bytes | memoryview]:
        """Yield parts, and then their seal."""
        total = hashlib.sha256(f"{path.relative_to(self.root).as_posix()}\n".encode())
        for part in parts:
            total.update(part)
            yield part
        yield total.hexdigest().encode()

    def erasure(self, key: str) -> Path:
        """Return the folder of an erasure: ``delta.safetensors`` and ``card.json``."""
        return self.root / "erasures" / key

    def has_erasure(self, key: str) -> bool:
        """Say whether an erasure is there; its files are not read."""
        with contextlib.suppress(OSError):
            return (self.erasure(key) / "card.json").stat().st_mtime_ns >= self.since
        return False

    def image(self, key: str) -> Path:
        """Return the file of an image."""
        return self.root / "images" / key[:2] / f"{key}.png"

    def features(self, key: str) -> Path:
        """Return the file of what was measured on a shard of images."""
        return self.root / "features" / key[:2] / f"{key}.safetensors"

    def attack(self, key: str, prompt: str) -> Path:
        """Return the file of an attack's finished prompt; different ids, different files."""
        readable = "".join(c if c.isalnum() or c in "-_" else "_" for c in prompt)[:40]
        name = f"{readable}-{hashlib.sha256(prompt.encode()).hexdigest()[:16]}.json"
        return self.root / "attacks" / key / name

    def work(self, key: str) -> Path:
        """Return the folder of what a plug-in keeps for itself."""
        return self.root / "work" / key

    def drop_older(self, folder: Path) -> None:
        """Delete what a plug-in wrote in its folder before a fresh run began."""
        for path in folder.rglob("*") if self.since else ():
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_mtime_ns < self.since:
                    path.unlink()

    def undrawn(self, picture: Path) -> Path:
        """Return the file that is there while a finished cell's picture is still to be drawn."""
        key = hashlib.sha256(str(picture.absolute()).encode()).hexdigest()[:16]
        return self.root / UNDRAWN / key

    @contextlib.contextmanager
    def lock(self, name: str, what: str, *, wait: bool = True) -> Iterator[bool]:
        """Reserve a piece of work for this process, and yield True.

        If another has it, a warning says so and this one waits; with ``wait=False`` False is yielded.

        Raises:
            StoreError: The lock cannot be made.
        """
        from filelock import FileLock  # slow; not needed to plan a run

        path = self.root / "locks" / f"{name}.lock"
        owner = path.with_suffix(".owner")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            free = _acquired(lock)
            if wait and not free:
                with contextlib.suppress(OSError):
                    log.warning("waiting for %s, which computes %s", owner.read_text(), what)
                lock.acquire()
        except OSError as exc:
            raise StoreError(
                f"cannot lock {path}: {exc.strerror or exc}; choose another folder with BENCH_CACHE"
            ) from exc
        if not (free or wait):
            yield False
            return
        try:
            write(owner, f"process {os.getpid()} on {platform.node()}".encode())
            yield True
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def begin(self, cells: Iterable[str], *, fresh: bool) -> int:
        """Return since when files must have been written to count for a run of these cells, in ns.

        That is 0 unless the run is fresh; then it is now, or the time when a fresh run of them began that
        was stopped before :meth:`end`.

        Raises:
            StoreError: Nothing can be written to the cache.
        """
        self.check_writable()
        if not fresh:
            return 0
        path = self._beginning(cells)
        if path.exists():
            when = datetime.fromtimestamp(path.stat().st_mtime).astimezone()
            log.warning("resumes what --fresh began at %s", when.isoformat(" ", "minutes"))
        else:
            write(path, b"")
        return path.stat().st_mtime_ns

    def end(self, cells: Iterable[str]) -> None:
        """Note that a run of these cells is finished, so that the next fresh one starts again."""
        self._beginning(cells).unlink(missing_ok=True)

    def _beginning(self, cells: Iterable[str]) -> Path:
        key = hashlib.sha256("\n".join(sorted(cells)).encode()).hexdigest()[:16]
        return self.root / "fresh" / key


def _acquired(lock: FileLock) -> bool:
    """Take a lock if it is free, and say whether it was."""
    from filelock import Timeout

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True
