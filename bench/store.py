"""What is kept on disk: records (results) and artifacts (a cache that may be deleted).

Everything is written to a temporary file first and then renamed, so no reader sees half of it, and
a process may be killed at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import platformdirs
from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from bench.errors import StoreError
from bench.metrics import Measurement
from bench.plan import Cell
from bench.types import Cost, SamplerNoise

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt of a cell.

    Args:
        id: The prompt's name in its set.
        text: The prompt as it is in the set.
        seed: Seed of its image.
        guidance: Its guidance.
        success: Whether the judge found the concept in any of its images; ``None`` if one of them
            could not be scored and no other succeeded.
        own: The judge's score of the prompt's own image.
        attacked: The judge's score of the adversarial prompt's image, made again by the harness.
        adversarial: The adversarial text, if there was an attack.
        cost: What the attack spent.
        trace: What the attack recorded.
        detail: What the judge said of the last image.
        scores: Further measures of the last image.
        adversarial_seed: Seed of the adversarial prompt's image.
        adversarial_noise: Noise in the sampler's steps, for attacks on the sampler.
        beyond: What else the attack changed: "embedding", "weights" or "noise"; empty for a prompt.
        own_detail: What the judge said of the prompt's own image, if there was an attack.
    """

    id: str
    text: str
    seed: int
    guidance: float
    success: bool | None
    own: float | None
    attacked: float | None = None
    adversarial: str | None = None
    cost: Cost = field(default_factory=Cost)
    trace: dict[str, Any] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float | None] = field(default_factory=dict)
    adversarial_seed: int | None = None
    adversarial_noise: SamplerNoise | None = None
    beyond: str = ""
    own_detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """The record of one cell."""

    cell: Cell
    status: Literal["ok", "skipped", "failed"]
    measurements: dict[str, Measurement] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    reason: str = ""
    erasure: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    excluded: int = 0  # prompts of the set that never run: bench.exclusion
    space: str = "prompt"  # what the attack changes: bench.types.Threat
    protocol: dict[str, str] = field(default_factory=dict)  # how it was drawn and judged, in words
    schema_version: int = SCHEMA


log = logging.getLogger("bench")
_SEAL = hashlib.sha256().digest_size * 2
_CODEC = TypeAdapter(Result)


class Store:
    """A folder of records. Knows nothing about how they were made or will be shown.

    Args:
        root: The folder.
        since: Records of cells that were written before do not count, in ns as in ``st_mtime_ns``.
    """

    def __init__(self, root: Path, since: int = 0) -> None:
        self.root, self.since = root, since
        self._said: set[Path] = set()

    def path(self, cell: Cell) -> Path:
        """Return where the cell's record lives, readable by a person."""
        name = f"{cell.method.name}--{cell.attack.name}--{cell.id}.json".replace("/", "+")
        folder = f"{cell.concept.name or 'none'}".replace(" ", "-")
        return self.root / cell.world / cell.task / folder / name

    def __contains__(self, cell: Cell) -> bool:
        return (found := self.get(cell)) is not None and found.status != "failed"

    def get(self, cell: Cell) -> Result | None:
        """Return a cell's record, or ``None`` if there is none that can be read; a line says why.

        Raises:
            StoreError: It is of a newer schema.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        try:
            found = _read(path)
        except NewerError:
            raise
        except StoreError as exc:
            self._again(path, str(exc))
            return None
        if found.cell.id != cell.id:
            self._again(path, f"{path} holds the record of another cell")
            return None
        return found if path.stat().st_mtime_ns >= self.since else None

    def _again(self, path: Path, why: str) -> None:
        if path not in self._said:
            self._said.add(path)
            log.warning("computed again: %s", why)

    @staticmethod
    def read(path: Path) -> Result:
        """Return the record in a file.

        Raises:
            StoreError: It is damaged, or of a newer schema.
        """
        return _read(path)

    def put(self, result: Result) -> Path:
        """Write a record."""
        path = self.path(result.cell)
        write(path, _CODEC.dump_json(result, indent=1))
        return path

    def check_writable(self) -> None:
        """Fail now rather than after an hour of work.

        Raises:
            StoreError: Nothing can be written to the folder.
        """
        probe(self.root)

    def __iter__(self) -> Iterator[Result]:
        """Yield every record that can be read; :meth:`load` also says what cannot."""
        yield from self.load()[0]

    def load(self) -> tuple[list[Result], list[str]]:
        """Return every record that can be read, and a line for what was passed over.

        Raises:
            StoreError: The root is no folder, or two files hold one cell's record.
        """
        if not self.root.is_dir():
            raise StoreError(f"{self.root}: expected a folder of records, there is none")
        found: dict[str, tuple[Path, Result]] = {}
        lines, foreign = [], []
        for path in sorted(self.root.rglob("*.json")):
            try:
                result = _read(path)
            except _ForeignError:
                foreign.append(path)
            except StoreError as exc:
                lines.append(f"passed over: {exc}")
            else:
                other, _ = found.setdefault(result.cell.id, (path, result))
                if other != path:
                    raise StoreError(
                        f"two records of one cell: {other} and {path}; expected one: keep the other "
                        "outside this folder"
                    )
        if foreign:
            more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
            names = ", ".join(map(str, foreign[:3]))
            lines.append(f"passed over, not records of bench: {names}{more}")
        return [result for _, result in found.values()], lines


class NewerError(StoreError):
    """A record that a newer version wrote."""


class _ForeignError(StoreError):
    """A JSON file that is no record, nor ever was."""


def _read(path: Path) -> Result:
    """Return the record in a file.

    Raises:
        StoreError: There is none that this version can read.
    """
    try:
        raw = json.loads(path.read_bytes(), parse_constant=_refuse)
        _check_depth(raw)
        if not isinstance(raw, dict) or "cell" not in raw:
            raise _ForeignError(f"{path} is no record of bench: it holds no cell")
        _check_version(path, raw.get("schema_version", SCHEMA))
        result = _CODEC.validate_python(raw)
        _check_numbers(result)
    except (OSError, ValueError, OverflowError, RecursionError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else _reason(exc)
        raise StoreError(
            f"{path} cannot be read as a record ({reason}); move it elsewhere to compute it again"
        ) from exc
    return result


def _check_version(path: Path, version: object) -> None:
    if type(version) is not int or version < 0:
        raise ValueError(f"schema_version: expected a whole number, got {version!r:.40}")
    if version > SCHEMA:
        raise NewerError(
            f"{path}: expected a record of schema {SCHEMA} or older, got {version}; update bench"
        )


def _check_numbers(result: Result) -> None:
    """Refuse a finished record without measurements, or with numbers that cannot be."""
    if result.status == "ok" and not result.measurements:
        raise ValueError("status ok, but no measurements")
    for name, m in result.measurements.items():
        if m.n < 0 or m.unscored < 0:
            raise ValueError(f"measurement {name}: expected counts of at least 0")
        if any(x is not None and not math.isfinite(x) for x in (m.value, m.low, m.high)):
            raise ValueError(f"measurement {name}: expected finite numbers")
    seconds = (*result.seconds.values(), *(row.cost.seconds for row in result.rows))
    if not all(map(math.isfinite, seconds)):
        raise ValueError("seconds: expected finite numbers")


def _check_depth(value: object, deepest: int = 32) -> None:
    """Refuse what is nested so deeply that walking it would end in a stack overflow."""
    level = [value]
    for _ in range(deepest):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return
    raise ValueError(f"nested deeper than {deepest} levels")


def _parts(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _refuse(constant: str) -> float:
    raise ValueError(f"expected finite numbers, got {constant}")


def _reason(exc: Exception) -> str:
    """Return the first fault of a file in one line."""
    if isinstance(exc, ValidationError):
        first = exc.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__


def write(path: Path, *parts: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        StoreError: The folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as stream:
            stream.writelines(parts)
        draft.replace(path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write {path}: {exc.strerror or exc}; choose another folder"
        ) from exc


def probe(folder: Path) -> None:
    """Write something and take it away again.

    Raises:
        StoreError: Nothing can be written to the folder.
    """
    path = folder / f".{os.getpid()}.probe"
    write(path, bytes(4096))
    path.unlink(missing_ok=True)


class Artifacts:
    """The cache: erasures, attacked prompts and images under their own keys. It may be deleted.

    A file ends with a seal, a digest of its content and of its own place (which is its key). One whose
    seal is wrong, damaged or brought from elsewhere, counts as not there, and a line says so.

    Args:
        root: The folder; ``$BENCH_CACHE`` or the platform's cache folder by default.
        since: Files that were written before count as not there, in ns as in ``st_mtime_ns``.
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
        write(path, data, self._seal(path, data))

    def load(self, path: Path) -> bytes | None:
        """Return what was saved there, or ``None`` if there is nothing, or something else."""
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

    def keep(self, path: Path, make: Callable[[], bytes]) -> bytes:
        """Return what is kept in a file, or make it now and keep it."""
        data = self.load(path)
        if data is None:
            data = make()
            self.save(path, data)
        return data

    def _seal(self, path: Path, data: bytes) -> bytes:
        total = hashlib.sha256(f"{path.relative_to(self.root).as_posix()}\n".encode())
        total.update(data)
        return total.hexdigest().encode()

    def erasure(self, key: str) -> Path:
        """Return the folder of an erasure: ``delta.safetensors`` and ``card.json``."""
        return self.root / "erasures" / key

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

    @contextlib.contextmanager
    def lock(self, name: str, what: str) -> Iterator[None]:
        """Hold a piece of work, so that no other process does it too; a line says if one has to wait.

        Raises:
            StoreError: The lock cannot be made.
        """
        path = self.root / "locks" / f"{name}.lock"
        owner = path.with_suffix(".owner")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                with contextlib.suppress(OSError):
                    log.warning("waiting for %s, which computes %s", owner.read_text(), what)
                lock.acquire()
        except OSError as exc:
            raise StoreError(
                f"cannot lock {path}: {exc.strerror or exc}; choose another folder with BENCH_CACHE"
            ) from exc
        try:
            write(owner, f"process {os.getpid()} on {platform.node()}".encode())
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()

    def begin(self, cells: Iterable[str], *, fresh: bool) -> int:
        """Return since when what is there counts for a run of these cells, in ns; 0 is always.

        A fresh run begins now, or when it began if it was stopped before :meth:`end`.

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
        """Note that a run of these cells is finished: the next fresh one begins anew."""
        self._beginning(cells).unlink(missing_ok=True)

    def _beginning(self, cells: Iterable[str]) -> Path:
        key = hashlib.sha256("\n".join(sorted(cells)).encode()).hexdigest()[:16]
        return self.root / "fresh" / key
