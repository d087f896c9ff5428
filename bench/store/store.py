"""Records on disk."""

from __future__ import annotations

import gc
import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from bench.core.errors import StoreError, first_line
from bench.plan.cell import Cell
from bench.store.agreement import disagreement
from bench.store.files import probe, write
from bench.store.record import SCHEMA, Record

log = logging.getLogger("bench")
_DIGEST = re.compile(r"[0-9a-f]{16}")


class NewerError(StoreError):
    """A record that a newer version wrote."""


class _ForeignError(StoreError):
    """A JSON file that is no record, nor ever was."""


@cache
def _codec() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


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

    def picture(self, cell: Cell) -> Path:
        """Return where the picture of the cell's images lives, beside its record."""
        return self.path(cell).with_suffix(".png")

    def __contains__(self, cell: Cell) -> bool:
        return (record := self.get(cell)) is not None and record.status != "failed"

    def get(self, cell: Cell) -> Record | None:
        """Return a cell's record, or ``None`` if there is none that can be used; a line says why.

        Raises:
            StoreError: It is of a newer schema.
        """
        path = self.path(cell)
        if not path.exists():
            return None
        try:
            record = _of(cell, path)
        except NewerError:
            raise
        except StoreError as exc:
            if path not in self._said:
                self._said.add(path)
                kept = _aside(path).name
                log.warning("%s; it is computed again, and this file is kept as %s", exc, kept)
            return None
        return record if path.stat().st_mtime_ns >= self.since else None

    def put(self, record: Record) -> Path:
        """Write a record. What is there and cannot be used is kept beside it, where no reader takes it."""
        path = self.path(record.cell)
        try:
            if path.exists():
                _of(record.cell, path)
        except StoreError:
            path.rename(_aside(path))
        write(path, _codec().dump_json(record, indent=1))
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
        """Return every record that can be used, and a line for what was passed over.

        A record is passed over if it cannot be read, if its rows do not give its numbers, if it is not of
        the cell that its file's name says, or if another file says otherwise of the same cell: then both
        are. Equal copies count once.

        Raises:
            StoreError: The root is no folder.
        """
        if not self.root.is_dir():
            raise StoreError(f"{self.root}: expected a folder of records, there is none")
        with _no_collection():
            return self._load()

    def _load(self) -> tuple[list[Record], list[str]]:
        found: dict[str, dict[Path, Record]] = defaultdict(dict)
        lines, foreign = [], []
        for path in sorted(self.root.rglob("*.json")):
            try:
                record = _held(path)
                name = _checked_name(path, record.cell)
            except _ForeignError:
                foreign.append(path)
            except StoreError as exc:
                lines.append(f"passed over: {exc}")
            else:
                found[name][path] = record
        if foreign:
            lines.append(f"passed over, not records of bench: {_some(foreign)}")
        records = []
        for copies in found.values():
            first, *others = copies.values()
            if any(other != first for other in others):
                lines.append(
                    f"passed over, records of one cell that differ: {_some(list(copies))}; keep one"
                )
            else:
                records.append(first)
        return records, lines


@contextmanager
def _no_collection() -> Iterator[None]:
    """Search for no cycles: records have none, and the search takes longer than reading them."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def _checked_name(path: Path, cell: Cell) -> str:
    """Return a cell's id, which a file's name must not contradict."""
    *_, digest = path.stem.split("--")
    name = cell.id
    if _DIGEST.fullmatch(digest) and digest != name:
        raise StoreError(
            f"{path} holds the record of another cell, {name}: it was edited or renamed"
        )
    return name


def _some(paths: list[Path]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + more


def record_files(folder: Path) -> list[Path]:
    """Return a folder's files of records, whatever they are called, also those that are damaged."""
    return [path for path in sorted(folder.rglob("*.json")) if not _foreign(path)]


def _foreign(path: Path) -> bool:
    try:
        read(path)
    except StoreError as exc:
        return isinstance(exc, _ForeignError)
    return False


def _aside(path: Path) -> Path:
    """Return where a file that cannot be used is kept."""
    names = (path.with_name(f"{path.name}.damaged{n if n > 1 else ''}") for n in count(1))
    return next(name for name in names if not name.exists())


def _of(cell: Cell, path: Path) -> Record:
    """Return the record in a cell's file.

    Raises:
        StoreError: It cannot be used, or is another cell's.
    """
    record = _held(path)
    if record.cell.id != cell.id:
        raise StoreError(f"{path} holds the record of another cell")
    return record


def _held(path: Path) -> Record:
    """Return the record in a file, whose rows give its numbers.

    Raises:
        StoreError: They do not, or it cannot be read.
    """
    record = read(path)
    if fault := disagreement(record):
        raise StoreError(f"{path} does not hold together: {fault}; `bench verify` says more")
    return record


def read(path: Path) -> Record:
    """Return the record in a file, whatever its numbers are.

    Raises:
        StoreError: There is none that this version can read.
    """
    try:
        raw = from_json(path.read_bytes(), allow_inf_nan=False)
        if not isinstance(raw, dict) or "cell" not in raw:
            raise _ForeignError(f"{path} is no record of bench: it holds no cell")
        version = raw.get("schema_version", SCHEMA)
        if isinstance(version, int) and version > SCHEMA:
            raise NewerError(
                f"{path}: expected a record of schema {SCHEMA} or older, got {version}; update bench"
            )
        record = _codec().validate_python(raw)
        if record.status == "ok" and not record.measurements:
            raise ValueError("status ok, but no measurements")
    except (OSError, ValueError) as exc:
        raise StoreError(f"{path} cannot be read as a record ({_reason(exc)})") from exc
    return record


def _reason(exc: Exception) -> str:
    """Return the first fault of a file in one line."""
    if isinstance(exc, ValidationError):
        first = exc.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return exc.strerror or "" if isinstance(exc, OSError) else first_line(exc)
