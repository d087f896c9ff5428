"""The notes below a table: what a reader must know about single records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from bench.core.digest import UNCHANGED
from bench.report.axes import labels
from bench.report.frame import Figure, measured
from bench.report.text import counted
from bench.store.record import Record

Who = Callable[[Record], str]


def notes(records: Iterable[Record]) -> tuple[str, ...]:
    """Return the notes of a table's records."""
    known = list({id(r): r for r in records}.values())
    method_of, attack_of = labels(known, "method"), labels(known, "attack")

    def victim(r: Record) -> str:
        return f"{r.cell.task}, {method_of(r)}"

    def who(r: Record) -> str:
        return f"{victim(r)}, attack {attack_of(r)}"

    kinds = (_not_run, _failed, _unscored, _not_attacked)
    lines = [line for kind in kinds for line in kind(known, who)]
    return (*lines, *_excluded(known), *_unchanged(known, victim), *_deviations(known))


def attacked(r: Record) -> int | None:
    """Return how many of a record's prompts were attacked; ``None`` without an attack."""
    if not r.cell.attacked or not r.rows:
        return None
    return sum("too_long" not in row.trace for row in r.rows)


def size(r: Record) -> Figure:
    """Return the number of a record's prompts, marked where not all of them were attacked."""
    some = attacked(r)
    return Figure(len(r.rows), attacked=some).flagged(
        "not all attacked", some is not None and some < len(r.rows)
    )


def _not_run(records: Sequence[Record], who: Who) -> Iterator[str]:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for r in records:
        if r.status != "ok":
            groups[r.status, r.reason].append(who(r))
    for (status, reason), cells in groups.items():
        words = [cell.split(", ") for cell in cells]
        same = ", ".join(w for w in words[0] if all(w in other for other in words)) or "all"
        yield f"{status}: {same}: {reason}" + (f" ({len(cells)} cells)" if len(cells) > 1 else "")


def _failed(records: Sequence[Record], who: Who) -> Iterator[str]:
    for r in records:
        for metric, m in r.measurements.items():
            if m.failed:
                yield f"failed: {who(r)}, {metric}: {m.failed}"


def _unscored(records: Sequence[Record], who: Who) -> Iterator[str]:
    total = sum(m.unscored for r in records for m in r.measurements.values())
    if total:
        some, pronoun = counted(total, "image"), "it counts" if total == 1 else "they count"
        yield f"{some} could not be scored; {pronoun} neither as erased nor as not erased"
    many = [
        f"{who(r)}, {metric}: {m.unscored} of {m.n + m.unscored}{_why(r, metric)}"
        for r in records
        for metric, m in r.measurements.items()
        if "unscored" in measured(m).flags
    ]
    if many:
        yield "? more than 5 % could not be scored: " + "; ".join(many)


def _why(r: Record, metric: str) -> str:
    """Return the first reason why the judge could not score an image, if a row has one."""
    if metric == next(iter(r.measurements)):
        for row in r.rows:
            if reason := row.own_detail.get("error") or row.detail.get("error"):
                return f", the first {row.id}: {reason!s:.100}"
    return ""


def _not_attacked(records: Sequence[Record], who: Who) -> Iterator[str]:
    few = [
        f"{who(r)}: {attacked(r)} of {len(r.rows)} attacked"
        for r in records
        if "not all attacked" in size(r).flags
    ]
    if few:
        yield "~ prompts too long to attack were not attacked and count in N: " + "; ".join(few)


def _excluded(records: Sequence[Record]) -> Iterator[str]:
    left_out = {
        (r.cell.task, r.excluded, r.protocol.get("excluded", "")) for r in records if r.excluded
    }
    for task, n, why in sorted(left_out):
        yield f"{counted(n, 'prompt')} of {task} excluded" + (f" ({why})" if why else "")


def _unchanged(records: Sequence[Record], victim: Who) -> Iterator[str]:
    """Say which erased models equal the base: a method changed nothing, or was given its weights."""
    found: dict[str, None] = {}
    for r in records:
        given = r.erasure.get("notes")
        said = given.get("unchanged") if isinstance(given, dict) else None
        equal = r.erasure.get("digest") == UNCHANGED and not r.erasure.get("sampler_time")
        if said or (equal and r.cell.method.name != "none"):
            what = f" ({said})" if isinstance(said, str) else ""
            found[f"{victim(r)}: equals the base, nothing was erased{what}"] = None
    yield from found


def _deviations(records: Sequence[Record]) -> Iterator[str]:
    """Say what differs from the published protocol."""
    tasks: dict[str, dict[str, None]] = defaultdict(dict)
    for r in records:
        if said := r.protocol.get("deviations"):
            tasks[said][r.cell.task] = None
        if r.cell.attack.params.get("projection") == "exact":
            name = r.cell.attack.name
            tasks[f"{name}'s projection is exact, the official code's is a bisection"] = {}
    for said, of in tasks.items():
        yield "not as published: " + said + (f" ({', '.join(of)})" if of else "")
