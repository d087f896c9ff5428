"""Holds a record to itself and to this version of bench, without any model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from bench.core.announced import owners
from bench.core.errors import BenchError, StoreError, first_line
from bench.core.types import Score
from bench.plan.asked import request_of, setting_of
from bench.plan.cell import REPLAYED, Cell
from bench.plan.plan import Job, plan
from bench.plugins.registry import create
from bench.store.agreement import first_rate, said, same
from bench.store.metrics import Measurement, any_of, mean, rate
from bench.store.record import FROM, Record, Row
from bench.store.store import read
from bench.tasks.tasks import Measure, Task

State = Literal["ok", "note", "wrong", "differs", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says.

    Args:
        state: "wrong": the record does not hold together; "differs": a prompt, drawn and judged again, has
            another verdict; "unknown": it could not be checked; "note": what is no fault.
        text: What was checked, in words.
    """

    state: State
    text: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What is known of a record.

    Args:
        path: Its file.
        findings: One for each check.
        record: It, if it can be read.
        job: The same cell as a request of today asks for it, if it does.
    """

    path: Path
    findings: tuple[Finding, ...]
    record: Record | None = None
    job: Job | None = None


def audit(
    path: Path,
    assets: Mapping[str, Path] = {},
    *,
    task: str = "",
) -> Audit:
    """Check a record: its schema, its digests, and whether its rows give its rates.

    Args:
        path: Its file.
        assets: Local paths of weights and data that its request needs.
        task: The file of its task, where that is one's own.
    """
    try:
        record = read(path)
    except StoreError as exc:
        return Audit(path, (Finding("wrong", first_line(exc)),))
    job, today = _today(record, assets, task)
    findings = [_name(path, record), today]
    if record.status == "ok":
        findings += [*_rows(record, job.task if job else None), *_space(record, job)]
    else:
        findings.append(Finding("unknown", f"{record.status}: {record.reason}"))
    return Audit(path, tuple(findings), record, job)


def _name(path: Path, record: Record) -> Finding:
    """Say whether the file's name is the digest of what is in it."""
    if path.stem.endswith(f"--{record.cell.id}"):
        return Finding(
            "ok", f"schema {record.schema_version}, cell {record.cell.id} as its content"
        )
    return Finding(
        "wrong", f"its content is that of cell {record.cell.id}, its name says otherwise"
    )


def _today(record: Record, assets: Mapping[str, Path], task: str) -> tuple[Job | None, Finding]:
    """Return the job that a request of today has for a cell, and whether it is that cell."""
    cell = record.cell
    try:
        setting = setting_of(cell, record.protocol)
        jobs = plan(request_of(cell, assets, task=task, setting=setting)).jobs
    except BenchError as exc:
        why = _not_installed(record) or first_line(exc)
        return None, Finding("unknown", f"no request of today asks for it: {why}")
    for job in jobs:
        if job.cell.id == cell.id:
            return job, Finding("ok", "a request of today asks for the same cell")
    mine = [job.cell for job in jobs if job.cell.task == cell.task]
    parts = ", ".join(_unequal(cell, mine[0])) if mine else "its task"
    return None, Finding(
        "wrong", f"a request of today asks for another cell: it differs in {parts}"
    )


def _not_installed(record: Record) -> str:
    """Name the distributions that a record is of and that are not here; empty if there are none."""
    cell, told = record.cell, record.environment
    needed = owners((cell.method.name, cell.attack.name, cell.task, *cell.sources, *cell.assets))
    needed |= {key.removeprefix(FROM) for key in told if key.startswith(FROM)}
    lacking = []
    for name in sorted(needed):
        try:
            distribution(name)
        except (PackageNotFoundError, ValueError):
            was = told.get(f"{FROM}{name}")
            lacking.append(f"{name} ({was})" if was else name)
    return (lacking and f"install the distribution {', '.join(lacking)}") or ""


def _unequal(first: Cell, second: Cell) -> list[str]:
    a, b = first.values, second.values
    return [name for name in a if a[name] != b[name]]


def _rows(record: Record, task: Task | None) -> Iterator[Finding]:
    """Say whether a record's rows are its task's prompts, and give its measurements."""
    rows = record.rows
    if not rows:
        yield Finding("unknown", "no rows: measured on the whole set, nothing to compute again")
        return
    if len(rows) != record.cell.prompts:
        yield Finding("wrong", f"expected {record.cell.prompts} rows, got {len(rows)}")
    if task:
        yield from _prompts(rows, task)
        yield from _verdicts(rows, record.cell, task.judge.threshold)
    for n, (metric, m) in enumerate(record.measurements.items()):
        measure = next((x for x in task.measures if x.metric == metric), None) if task else None
        again = first_rate(record) if n == 0 else _further(rows, metric, measure)
        if m.failed or again is None:
            yield Finding("unknown", f"{metric}: its rows do not say it")
        elif same(m, again):
            yield Finding("ok", f"{metric} {said(m)} is what its {len(rows)} rows give")
        else:
            yield Finding("wrong", f"{metric} {said(m)}, its rows give {said(again)}")


def _prompts(rows: Sequence[Row], task: Task) -> Iterator[Finding]:
    known = {(p.id, p.text, p.seed, p.guidance) for p in task.prompts}
    other = [row.id for row in rows if (row.id, row.text, row.seed, row.guidance) not in known]
    if other:
        yield Finding("wrong", f"{len(other)} rows are not the task's prompts: {other[0]}")


def _verdicts(rows: Sequence[Row], cell: Cell, limit: float) -> Iterator[Finding]:
    """Name rows whose verdict does not follow from their scores."""
    odd = []
    for row in rows:
        scores = [row.own, row.attacked] if cell.attacked else [row.own]
        hits = [None if score is None else score >= limit for score in scores]
        odd += [] if any_of(hits) is row.success else [row.id]
    if odd:
        yield Finding("wrong", f"{len(odd)} verdicts do not follow from their scores: {odd[0]}")


def _space(record: Record, job: Job | None) -> Iterator[Finding]:
    """Name rows in which the attack changed what its threat does not allow."""
    cell, space = record.cell, record.space
    if job and (says := create("attacks", job.cell.attack).threat.space) != space:
        yield Finding(
            "wrong", f"it says that the attack changes the {space}, its threat says {says}"
        )
    if cell.attack.name in REPLAYED:
        return
    found = {row.id: odd for row in record.rows if (odd := _changed(row) - {space})}
    for what in sorted({what for odd in found.values() for what in odd}):
        ids = [name for name, odd in found.items() if what in odd]
        yield Finding(
            "wrong",
            f"the attack changed the {what} of {len(ids)} prompts, its threat says {space}: {ids[0]}",
        )


def _changed(row: Row) -> set[str]:
    """Return what an attack changed of a prompt, in the words of a threat's ``space``."""
    changed = {
        "prompt": row.adversarial not in {None, row.text},
        "latent": row.adversarial_seed not in {None, row.seed} or row.beyond == "noise",
        "scale of guidance": row.adversarial_guidance not in {None, row.guidance},
    }
    return {what for what, so in changed.items() if so} | ({row.beyond} - {"", "noise"})


def _further(rows: Sequence[Row], metric: str, measure: Measure | None) -> Measurement | None:
    """Return a further measure of the last images from its scores."""
    if measure is None or any(metric not in row.scores for row in rows):
        return None
    scores = [row.scores[metric] for row in rows]
    if measure.reduce == "rate":
        return rate([None if score is None else score >= measure.threshold for score in scores])
    return mean([Score(score) for score in scores])
