"""CSV files that the package errorbars reads: one score per prompt and model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from bench.report.axes import labels
from bench.report.interchange.common import Export, base, csv_file, measure, slug
from bench.store.record import Record

COLUMNS = ("question_id", "model", "score")
_FACETS: tuple[Callable[[Record], str], ...] = (
    base,
    lambda r: r.cell.concept.name,
    lambda r: r.cell.dtype,
    lambda r: f"seed={r.cell.seed}",
)
"""What a model is called beside its method, where the models of a file differ in it."""


def export(records: list[Record]) -> Export:
    """Return a file for each task and attack: 1 where the erasure held or the image is right, else 0.

    So the mean score is the concept erasing rate, or the accuracy. Prompts that could not be scored are no
    lines.
    """
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    left_out: list[str] = []
    for r in records:
        metric = next(iter(r.measurements), "")
        known = measure(metric)
        if r.status != "ok" or known is None or not known.is_rate or not r.rows:
            left_out.append(f"{r.cell.task}, {r.cell.method.name}: no rate of prompts")
            continue
        cell = r.cell
        groups[cell.world, cell.task, cell.task_digest, cell.attack.name].append(r)
        if none := sum(row.success is None for row in r.rows):
            left_out.append(
                f"{cell.task}, {cell.method.name}: {none} prompts that could not be scored"
            )
    names = {key: slug("-".join((key[0], key[1], key[3]))) for key in groups}
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    files = {
        f"{name}-{slug(key[2])}.csv" if (name := names[key]) in twice else f"{name}.csv": _file(
            some
        )
        for key, some in groups.items()
    }
    return Export(files, tuple(dict.fromkeys(left_out)))


def _file(records: list[Record]) -> bytes:
    label = labels(records, "method")
    several = [get for get in _FACETS if len({get(r) for r in records}) > 1]
    called = [" ".join([label(r), *(get(r) for get in several)]) for r in records]
    names = [
        name if called.count(name) == 1 else f"{name} {r.cell.id}"
        for name, r in zip(called, records, strict=True)
    ]
    lines = [
        (row.id, name, int(row.success is not _lower(r)))
        for name, r in zip(names, records, strict=True)
        for row in r.rows
        if row.success is not None
    ]
    return csv_file(COLUMNS, lines)


def _lower(r: Record) -> bool:
    """Whether a success of a record's judge is a failure of the erasure."""
    known = measure(next(iter(r.measurements), ""))
    return known is None or known.lower_is_better
