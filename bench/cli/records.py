"""Reads the records that a command shows."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.cli.terminal import err, say
from bench.core.errors import SpecError, StoreError

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
    gc.disable()
    try:
        records, passed_over = Store(results).load()
        gc.freeze()  # records stay until the end: no search for cycles among them
    finally:
        gc.enable()
    for line in passed_over:
        say(f"warning: {line}", err)
    if strict and passed_over:
        raise StoreError(f"{results}: with --strict what was passed over is an error: see above")
    return records


def records_of(
    results: Path,
    tasks: list[str] | None,
    *,
    methods: list[str] | None = None,
    attacks: list[str] | None = None,
    seed: int | None = None,
    strict: bool,
) -> list[Record]:
    """Return the records of a folder, of some tasks, methods, attacks or a seed only if they are named.

    Raises:
        SpecError: There are none.
        StoreError: As :func:`records_in`.
    """
    from bench.plugins.registry import Ref
    from bench.report.tables import of_tasks, picked
    from bench.tasks.lookup import name_of

    records = records_in(results, strict=strict)
    if tasks:
        names = list(map(name_of, tasks))
        check_known(records, "task", names)
        records = of_tasks(records, names)
    check_known(records, "method", [Ref.parse(text).name for text in methods or ()])
    check_known(records, "attack", [Ref.parse(text).name for text in attacks or ()])
    records = picked(records, methods or (), attacks or (), seed)
    if not records:
        raise SpecError(f"{results} has no records of this kind: run `bench run` first")
    return records


def check_known(
    records: Iterable[Record], axis: Literal["task", "method", "attack"], names: Iterable[str]
) -> None:
    """Refuse a name that no record has, and that is not one of a task or a plug-in either.

    Raises:
        UnknownNameError: There is such a name.
    """
    from bench.core.errors import UnknownNameError
    from bench.plugins.registry import names as plugins
    from bench.tasks.lookup import task_names

    asked = set(names)
    if axis == "task":
        known = {r.cell.task for r in records}
        others = {*task_names("emoji"), *task_names("photo")} if asked - known else set()
    else:
        known = {getattr(r.cell, axis).name for r in records}
        others = (
            {*plugins("methods" if axis == "method" else "attacks")} if asked - known else set()
        )
    for name in sorted(asked - known - others):
        raise UnknownNameError(axis, name, known or others)
