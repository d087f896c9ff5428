"""Records on disk."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bench.errors import StoreError
from bench.plan.cell import Cell
from bench.store.files import probe, write
from bench.store.record import SCHEMA, Record

log = logging.getLogger("bench")
_CODEC = TypeAdapter(Record)


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
        name = f"{cell.method.name}--{cell.attack.name}--{cell.id}.json"
        parts = (cell.task, (cell.concept.name or "none").replace(" ", "-"), name)
        return self.root.joinpath(cell.world, *(part.replace("/", "+") for part in parts))

    def __contains__(self, cell: Cell) -> bool:
        return (found := self.get(cell)) is not None and found.status != "failed"

    def get(self, cell: Cell) -> Record | None:
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
    def read(path: Path) -> Record:
        """Return the record in a file.

        Raises:
            StoreError: It is damaged, or of a newer schema.
        """
        return _read(path)

    def put(self, result: Record) -> Path:
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

    def __iter__(self) -> Iterator[Record]:
        """Yield every record that can be read; :meth:`load` also says what cannot."""
        yield from self.load()[0]

    def load(self) -> tuple[list[Record], list[str]]:
        """Return every record that can be read, and a line for what was passed over.

        Raises:
            StoreError: The root is no folder, or two files hold one cell's record.
        """
        if not self.root.is_dir():
            raise StoreError(f"{self.root}: expected a folder of records, there is none")
        found: dict[str, tuple[Path, Record]] = {}
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


def _read(path: Path) -> Record:
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


def _check_numbers(result: Record) -> None:
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
