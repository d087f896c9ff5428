"""What an erasure does to each of many subjects, near the concept and far from it.

A subject is the concept's own if the concept names it, near if it is of the family of one that the
concept names, and one of the others otherwise. Families were written down by what subjects are, before any
result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.core.types import Concept
from bench.plan.cell import NO_CONCEPT
from bench.plugins.registry import Ref
from bench.report.axes import grouped, labels, only
from bench.report.corrected import AS_SEEN, Judges
from bench.report.frame import Figure, Table, measured
from bench.report.statistics import ALPHA, Outcomes, detectable, holm, paired
from bench.report.subjects import asked
from bench.report.tables import laid_out
from bench.store.metrics import rate
from bench.store.record import Record
from bench.tasks.exclusion import means

_GROUPS = ("own", "near", "others")
_COLUMNS = ("own", "near", "near, worst", "others", "others, worst")


def ripple_tables(
    records: Iterable[Record], *, each: bool = True, judges: Judges = AS_SEEN
) -> list[Table]:
    """Lay out how often subjects are found in pictures that ask for them: a line for each erased model.

    Args:
        records: In any order; those that do not ask for subjects are left out.
        each: Add a table with a column for each subject to that of the groups.
        judges: What rates are corrected for.
    """
    ripples = [found for r in records if (found := _ripple(r))]
    tables = []
    for task in dict.fromkeys(r.record.cell.task for r in ripples):
        mine = [r for r in ripples if r.record.cell.task == task]
        tables += [_groups_table(mine, judges), *([_each_table(mine, judges)] if each else [])]
    return tables


@dataclass(frozen=True)
class _Ripple:
    """One record: whether its prompts' subjects were found, by subject and by group."""

    record: Record
    subjects: Mapping[str, Outcomes]
    groups: Mapping[str, tuple[str, ...]]

    def found(self, *subjects: str) -> Outcomes:
        """Return the outcomes of the prompts of some subjects."""
        return [outcome for subject in subjects for outcome in self.subjects[subject]]

    def worst(self, group: str) -> str:
        """Return the subject of a group that is found least often; none if all are found alike."""
        shares = {s: m.value for s in self.groups[group] if (m := rate(self.found(s))).n}
        known = {s: value for s, value in shares.items() if value is not None}
        return min(known, key=known.__getitem__) if len(set(known.values())) > 1 else ""


def _ripple(record: Record) -> _Ripple | None:
    """Return what a record says of subjects; of a prompt set that is not here nothing is known."""
    found = asked(record)
    if found is None:
        return None
    subjects: dict[str, list[bool | None]] = {}
    for row in record.rows:
        subjects.setdefault(found.subjects[row.id], []).append(row.success)
    return _Ripple(record, subjects, _grouped(tuple(subjects), found.families, record.cell.concept))


def _grouped(
    subjects: Sequence[str], families: Sequence[frozenset[str]], concept: Concept
) -> dict[str, tuple[str, ...]]:
    own = {subject for subject in subjects if means(subject, concept)}
    near = set[str]().union(*(family for family in families if family & own)) - own
    each = {s: "own" if s in own else "near" if s in near else "others" for s in subjects}
    return {group: tuple(s for s in subjects if each[s] == group) for group in _GROUPS}


def _groups_table(ripples: Sequence[_Ripple], judges: Judges) -> Table:
    bases = _bases(ripples)

    def figures(ripple: _Ripple) -> list[Figure | None]:
        groups = {group: some for group, some in ripple.groups.items() if some}
        own, near, others = map(_against(ripple, bases, groups, judges).get, _GROUPS)
        each = _against(ripple, bases, {s: (s,) for s in ripple.subjects}, judges)
        worst_near, worst_other = (each.get(ripple.worst(group)) for group in _GROUPS[1:])
        return [own, near, worst_near, others, worst_other]

    title = "Ripple: how often subjects are found, by their distance to what was erased"
    return _table(title, ripples, ("worst near", "worst other"), _COLUMNS, figures, judges)


def _each_table(ripples: Sequence[_Ripple], judges: Judges) -> Table:
    bases = _bases(ripples)
    subjects = tuple(dict.fromkeys(s for r in ripples for s in r.subjects))

    def figures(ripple: _Ripple) -> list[Figure | None]:
        found = _against(ripple, bases, {s: (s,) for s in ripple.subjects}, judges)
        return [found.get(s) for s in subjects]

    return _table("Ripple: how often each subject is found", ripples, (), subjects, figures, judges)


def _table(
    title: str,
    ripples: Sequence[_Ripple],
    worst: tuple[str, ...],
    columns: tuple[str, ...],
    figures: Callable[[_Ripple], list[Figure | None]],
    judges: Judges,
) -> Table:
    records, of = [r.record for r in ripples], {id(r.record): r for r in ripples}
    method_of = labels(records, "method")

    def named(r: Record) -> tuple[str, ...]:
        names = [of[id(r)].worst(group) for group in _GROUPS[1:]] if worst else []
        return (r.cell.concept.name, method_of(r), *names)

    table = laid_out(
        title,
        ("erased", "method", *worst),
        named,
        grouped(records, across=()),
        columns,
        lambda g: figures(of[id(only(g.records))]),
        legend=_legend(ripples, judges),
        records=records,
        hidden="concept",
    )
    unpaired = sum(_key(r) not in _bases(ripples) for r in ripples)
    lacking = (
        f"{unpaired} lines without a record of method none on the same prompts: none is marked"
    )
    return replace(table, notes=(*table.notes, *([lacking] if unpaired else [])))


def _legend(ripples: Sequence[_Ripple], judges: Judges) -> str:
    """Say how to read the tables, and what so many prompts of a subject can show."""
    sizes = {len(outcomes) for r in ripples for outcomes in r.subjects.values()}
    tests = max(len(r.subjects) for r in ripples)
    n = f"{min(sizes)}" + (f" to {max(sizes)}" if len(sizes) > 1 else "")
    least = detectable(max(sizes), tests)
    can = (
        f"{least.prompts} of them must be lost, and none gained, for a mark"
        if least
        else f"too few to mark a subject: losing every one of {max(sizes)} has p = "
        f"{2.0 ** (1 - max(sizes)):.2g} before Holm"
    )
    how = "with its 95 % Wilson interval"
    if judges.known is not None:
        how = "corrected for the judge's errors, with its 95 % interval"
    near = {r.record.cell.concept.name: ", ".join(r.groups["near"]) or "none" for r in ripples}
    return (
        f"rate of pictures that show the subject they were asked for, {how}; own: "
        "what was erased; near: of its family; worst: the subject found least often; * fewer than with "
        f"method none (exact McNemar, p < {ALPHA} after Holm over a line's {tests} subjects, or over its "
        f"groups). {n} prompts of each subject: {can}. "
        + "; ".join(f"near {name}: {some}" for name, some in sorted(near.items()))
    )


def _bases(ripples: Iterable[_Ripple]) -> dict[str, _Ripple]:
    """Return the records of method none, of whatever concept, by what they have in common with others."""
    return {_key(r): r for r in ripples if r.record.cell.method.name == "none"}


def _key(ripple: _Ripple) -> str:
    return replace(ripple.record.cell, method=Ref("none"), concept=NO_CONCEPT).id


def _against(
    ripple: _Ripple,
    bases: Mapping[str, _Ripple],
    parts: Mapping[str, tuple[str, ...]],
    judges: Judges,
) -> dict[str, Figure]:
    """Return the rate of each part, marked where fewer are found than with method none."""
    rates = {name: judges.rate(ripple.record, rate(ripple.found(*s))) for name, s in parts.items()}
    figures = {name: measured(m) if m else Figure(word="unknown") for name, m in rates.items()}
    base = bases.get(_key(ripple))
    if base is None or ripple.record.cell.method.name == "none":
        return figures
    lost = {name: paired(ripple.found(*some), base.found(*some)) for name, some in parts.items()}
    ps = holm([d.p if d else 1.0 for d in lost.values()])
    return {
        name: replace(figures[name], p=p).flagged("differs", bool(d and d.value < 0 and p < ALPHA))
        for (name, d), p in zip(lost.items(), ps, strict=True)
    }
