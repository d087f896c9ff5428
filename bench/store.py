"""What is kept on disk: records (results) and artifacts (a cache that may be deleted).

Everything is written to a temporary file first and then renamed, so no reader sees half of it, and
a process may be killed at any time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import platformdirs
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


_CODEC = TypeAdapter(Result)


class Store:
    """A folder of records. Knows nothing about how they were made or will be shown."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, cell: Cell) -> Path:
        """Return where the cell's record lives, readable by a person."""
        name = f"{cell.method.name}--{cell.attack.name}--{cell.id}.json".replace("/", "+")
        folder = f"{cell.concept.name or 'none'}".replace(" ", "-")
        return self.root / cell.world / cell.task / folder / name

    def __contains__(self, cell: Cell) -> bool:
        return (found := self.get(cell)) is not None and found.status != "failed"

    def get(self, cell: Cell) -> Result | None:
        """Return a cell's record, or ``None`` if there is none."""
        path = self.path(cell)
        return _read(path) if path.exists() else None

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
        probe = self.root / f".{os.getpid()}.probe"
        write(probe, b"")
        probe.unlink()

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
        raise StoreError(
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


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        StoreError: The folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        draft.replace(path)
    except OSError as exc:
        raise StoreError(
            f"cannot write {path}: {exc.strerror or exc}; choose another folder"
        ) from exc


class Artifacts:
    """The cache: erasures, attacked prompts and images under their own keys."""

    def __init__(self, root: Path | None = None) -> None:
        default = os.environ.get("BENCH_CACHE") or platformdirs.user_cache_dir("erasure-bench")
        self.root = Path(root or default)

    def erasure(self, key: str) -> Path:
        """Return the folder of an erasure: ``delta.safetensors`` and ``card.json``."""
        return self.root / "erasures" / key

    def image(self, key: str) -> Path:
        """Return the file of an image."""
        return self.root / "images" / key[:2] / f"{key}.png"

    def features(self, key: str) -> Path:
        """Return the file of what was measured on a shard of images."""
        return self.root / "features" / key[:2] / f"{key}.safetensors"

    def lock(self, name: str) -> Path:
        """Return the lock file of a piece of work."""
        path = self.root / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def attack(self, key: str) -> Path:
        """Return the folder of an attack's finished prompts."""
        return self.root / "attacks" / key
