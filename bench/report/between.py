"""Tests between methods: which differences under one attack the prompts support."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from bench.plan.floors import FLOORS
from bench.report.axes import Group, differing, grouped, labels, order, placed
from bench.report.corrected import AS_SEEN, Judges
from bench.report.frame import Figure, Line, Table, compared
from bench.report.notes import notes
from bench.report.statistics import ALPHA, Difference, holm, letters, paired_records
from bench.report.tables import cer_tables, roles
from bench.store.record import Record

REFERENCES = ("none", "never-learned")
"""Methods that others are measured by; among themselves methods are compared without these."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two methods under one attack.

    Args:
        group: All methods under this attack.
        first: One of them.
        second: Another.
        difference: CER of the first minus that of the second.
        p_holm: Its p-value after Holm, over all tests.
    """

    group: Group
    first: Record
    second: Record
    difference: Difference
    p_holm: float


def comparisons(records: Iterable[Record]) -> list[Comparison]:
    """Compare every two methods under the same attack, or, if nothing was attacked, without one.

    Floors and the methods that others are measured by are left out: each test costs the others some power.
    """
    targets = [r for r in roles(records)[0] if r.status == "ok" and r.rows]
    attacked = any(r.cell.attacked for r in targets)
    tested = [
        r
        for r in targets
        if r.cell.attacked is attacked
        and r.cell.attack.name not in FLOORS
        and r.cell.method.name not in REFERENCES
    ]
    found = [
        (g, a, b, d)
        for g in grouped(tested, across=("method",))
        for a, b in combinations(g.records, 2)
        if (d := paired_records(b, a))  # b's successes minus a's are a's erased prompts minus b's
    ]
    adjusted = holm([d.p for *_, d in found])
    return [Comparison(*each, p) for each, p in zip(found, adjusted, strict=True)]


def ties(found: Sequence[Comparison]) -> dict[int, str]:
    """Return letters of tie groups by the ``id`` of a record; "a" has the highest CER."""
    letters_of: dict[int, str] = {}
    for g in {id(test.group): test.group for test in found}.values():
        mine = [test for test in found if test.group is g]
        known = {id(r): r for test in mine for r in (test.first, test.second)}
        share = {n: sum(row.success is True for row in r.rows) for n, r in known.items()}
        names = {str(n): n for n in sorted(known, key=share.__getitem__)}
        apart = [(str(id(t.first)), str(id(t.second))) for t in mine if t.p_holm < ALPHA]
        letters_of |= {names[name]: text for name, text in letters(list(names), apart).items()}
    return letters_of


def between_tables(records: Sequence[Record], judges: Judges = AS_SEEN) -> list[Table]:
    """Lay out the tests between methods, and before them concept erasing rates with their tie groups.

    Args:
        records: Any.
        judges: What rates and differences are corrected for.
    """
    found = comparisons(records)
    rates = cer_tables(records, ties(found), judges) if found else []
    said = (
        f"; letters: methods that share one are not known to differ (Holm over {len(found)} tests)"
    )
    return [*(replace(t, legend=t.legend + said) for t in rates), between_table(found, judges)]


def between_table(found: Sequence[Comparison], judges: Judges = AS_SEEN) -> Table:
    """Lay out tests between methods: a line for each two methods under one attack."""
    used = list({id(r): r for test in found for r in (test.first, test.second)}.values())
    method_of, attack_of = labels(used, "method"), labels(used, "attack")
    for g in {id(test.group): test.group for test in found}.values():
        placed((method_of(r), r) for r in g.records)
    groups = list({id(test.group): test.group for test in found}.values())
    facets = [f for f in differing(groups, lambda r: (r.cell.task, attack_of(r))) if f != "N"]

    def line(test: Comparison) -> Line:
        ends = sorted((test.first, test.second), key=lambda r: order([method_of(r)]))
        d = test.difference if ends[0] is test.first else _turned(test.difference)
        figure = compared(judges.difference(test.first, d)).flagged("differs", test.p_holm < ALPHA)
        names = (test.first.cell.task, attack_of(test.first))
        more = (test.group.facets.get(f, "") for f in facets)
        return Line(
            (*names, *more, *map(method_of, ends)),
            (
                replace(figure, p_holm=test.p_holm),
                Figure(d.only_first),
                Figure(d.only_second),
                Figure(d.p, p=d.p),
                Figure(test.p_holm, p=d.p, p_holm=test.p_holm),
            ),
        )

    return Table(
        "Differences between methods",
        ("task", "attack", *facets, "first", "second"),
        (f"{judges.cer}, first - second", "first only", "second only", "p", "p, Holm"),
        tuple(sorted(map(line, found), key=lambda line: order(line.names))),
        f"CER of the first method minus that of the second on the same prompts, with its 95 % interval "
        f"(Tango's score); first only, second only: prompts that only this method keeps erased; p: exact "
        f"McNemar; Holm: corrected for all {len(found)} tests of this table; * p < {ALPHA} after Holm",
        notes(used),
    )


def _turned(d: Difference) -> Difference:
    """Return the difference of the second minus the first."""
    return Difference(-d.value, -d.high, -d.low, d.n, d.p, d.only_second, d.only_first)
