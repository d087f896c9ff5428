"""Reads the records that a command shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli.terminal import err, say
from bench.errors import SpecError, StoreError

if TYPE_CHECKING:
    from bench.store.record import Record


def records_in(results: Path, *, strict: bool = False) -> list[Record]:
    """Return the records of a folder; a line says what was passed over.

    Raises:
        SpecError: There is no such folder.
        StoreError: Something was passed over, and ``strict`` allows nothing of that.
    """
    from bench.store.store import Store

    if not results.is_dir():
        raise SpecError(f"there is no folder {results}: run `bench run` first, or give --results")
    records, passed_over = Store(results).load()
    for line in passed_over:
        say(f"warning: {line}", err)
    if strict and passed_over:
        raise StoreError(
            f"{results}: the {len(passed_over)} warnings above are errors with --strict"
        )
    return records
