"""What the paper says of its methods, tested on records: holds, the opposite, the same, or not shown."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from pydantic import TypeAdapter

from bench.plan.floors import FLOORS
from bench.report.axes import Group, differing, grouped, labels
from bench.report.corrected import AS_SEEN, Judges
from bench.report.floors import NEVER
from bench.report.frame import Figure, Line, Table, compared, measured
from bench.report.notes import notes
from bench.report.paper import PAPER, source
from bench.report.statistics import (
    ALPHA,
    MARGIN,
    Difference,
    equivalent,
    holm,
    paired_records,
)
from bench.report.tables import cer_figure
from bench.store.record import Record

Verdict = Literal["holds", "opposite", "same", "not shown"]
VERDICTS: tuple[Verdict, ...] = ("holds", "not shown", "same", "opposite")


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement: ``first`` is ``expect`` than ``second`` in ``measure``.

    Args:
        says: The statement.
        where: Where the paper makes it.
        first: A method.
        second: Another.
        tasks: Whose concepts it is about.
        attacks: Under which it is made.
        measure: "cer", or the name of a rate of the task "retain".
        expect: What the first is said to be.
    """

    says: str
    where: str
    first: str
    second: str
    tasks: tuple[str, ...]
    attacks: tuple[str, ...] = ("none",)
    measure: str = "cer"
    expect: Literal["higher", "lower", "same"] = "higher"

    def about(self, r: Record) -> bool:
        """Whether a record is one of those that the statement is about, whatever its method."""
        cell = r.cell
        erased = cell.concept.name.replace(" ", "-")
        if self.measure == "cer":
            return cell.task in self.tasks and cell.attack.name in self.attacks
        return cell.task == "retain" and erased in self.tasks and self.measure in r.measurements


@dataclass(frozen=True, slots=True)
class Tested:
    """A statement on one task under one attack.

    Args:
        claim: The statement.
        group: All methods under the same conditions.
        first: Record of its first method.
        second: Of its second, on the same prompts.
        never: The same attack on a model that never learned the concept, if there is one.
        difference: The first's rate minus the second's.
        p_holm: Its p-value after Holm, over all tests of statements that say "higher" or "lower", or over
            all others.
    """

    claim: Claim
    group: Group
    first: Record
    second: Record
    never: Record | None
    difference: Difference
    p_holm: float = 1.0

    @property
    def verdict(self) -> Verdict:
        """What the prompts say; equivalent methods are the same, even where they differ a little."""
        if equivalent(self.difference):
            return "holds" if self.claim.expect == "same" else "same"
        if self.p_holm >= ALPHA:
            return "not shown"
        higher = self.difference.value > 0
        return "holds" if self.claim.expect == ("higher" if higher else "lower") else "opposite"


@cache
def claims() -> tuple[Claim, ...]:
    """Return the paper's statements, in its order."""
    raw = tomllib.loads((PAPER / "claims.toml").read_text(encoding="utf-8"))
    return TypeAdapter(tuple[Claim, ...]).validate_python(raw["claims"])


def checked(records: Iterable[Record]) -> list[Tested]:
    """Test every statement wherever both methods are on record under the same conditions.

    Of several seeds the lowest counts: the same prompts again are no independent test.
    """
    ran = [r for r in records if r.status == "ok" and r.rows and r.cell.attack.name not in FLOORS]
    seed = min((r.cell.seed for r in ran), default=0)
    mine = [r for r in ran if r.cell.seed == r.cell.erased_with == seed]
    groups = grouped(mine, across=("method",))
    found = [test for claim in claims() for g in groups for test in _tests(claim, g)]
    return [*_adjusted(t for t in found if t.claim.expect != "same"),
            *_adjusted(t for t in found if t.claim.expect == "same")]  # fmt: skip


def _adjusted(family: Iterable[Tested]) -> list[Tested]:
    found = list(family)
    ps = holm([test.difference.p for test in found])
    return [replace(test, p_holm=p) for test, p in zip(found, ps, strict=True)]


def _tests(claim: Claim, g: Group) -> Iterator[Tested]:
    if not claim.about(g.first):
        return
    first, second, never = (
        [r for r in g.records if r.cell.method.name == name]
        for name in (claim.first, claim.second, NEVER)
    )
    gold = never[0] if len(never) == 1 else None
    for a in first:
        for b in second:
            # a success is that the concept is found; in the task "retain", that what was asked for is
            if d := paired_records(b, a) if claim.measure == "cer" else paired_records(a, b):
                yield Tested(claim, g, a, b, gold, d)


def claims_tables(records: Sequence[Record], judges: Judges = AS_SEEN) -> list[Table]:
    """Lay out the paper's statements: how often each holds, and every test.

    Args:
        records: Any; those of the lowest seed are tested.
        judges: What concept erasing rates and their differences are corrected for.
    """
    found = checked(records)
    return [_summary(found), *([_every(found, judges)] if found else [])]


def _summary(found: Sequence[Tested]) -> Table:
    lines = []
    for claim in claims():
        count = Counter(test.verdict for test in found if test.claim is claim)
        figures = [Figure(count[verdict]) if count else None for verdict in VERDICTS]
        lines.append(Line((claim.says, claim.where), tuple(figures)))
    missing = sum(not any(test.claim is claim for test in found) for claim in claims())
    return Table(
        f"What the paper says (arXiv {source().arxiv}), and what records say of it",
        ("claim", "where"),
        VERDICTS,
        tuple(lines),
        "Numbers of tests; one is of one task under one attack. holds, opposite: methods differ "
        f"({_tested(found)}); same: equivalent within {MARGIN:.2f} (two one-sided tests at {ALPHA}), which "
        "counts as holds where the claim says so; not shown: none of these",
        (f"· no records to test it: {missing} of {len(lines)} claims",) if missing else (),
    )


def _tested(found: Sequence[Tested]) -> str:
    n = sum(test.claim.expect != "same" for test in found)
    return f"exact McNemar, p < {ALPHA} after Holm over {n} tests"


def _every(found: Sequence[Tested], judges: Judges) -> Table:
    used = [r for t in found for r in (t.first, t.second, t.never) if r]
    method_of, attack_of = labels(used, "method"), labels(used, "attack")
    groups = list({id(test.group): test.group for test in found}.values())
    named = differing(groups, lambda r: (r.cell.task, attack_of(r), r.cell.concept.name))
    facets = [name for name in named if name not in {"N", "concept"}]

    def variants(test: Tested) -> Iterator[str]:
        """Yield what methods are called that are not as released, or have several versions here."""
        for r in (test.first, test.second):
            if (called := method_of(r)) != r.cell.method.name:
                yield called

    def line(test: Tested) -> Line:
        r, cer = test.first, test.claim.measure == "cer"
        task = r.cell.task if cer else f"{r.cell.task} ({r.cell.concept.name})"
        d = judges.difference(r, test.difference) if cer else test.difference
        more = (test.group.facets.get(f, "") for f in facets)
        says = " ".join([test.claim.says, *(f"[{name}]" for name in variants(test))])
        return Line(
            (says, task, attack_of(r), *more),
            (
                _rate(test.first, test, judges),
                _rate(test.second, test, judges),
                replace(compared(d), p_holm=test.p_holm).flagged("differs", test.p_holm < ALPHA),
                _rate(test.never, test, judges),
                Figure(word=test.verdict),
            ),
        )

    return Table(
        "The paper's claims, test by test",
        ("claim", "task", "attack", *facets),
        ("first", "second", "difference", "never learned", "verdict"),
        tuple(map(line, found)),
        f"first, second: the claim's two methods. {judges.legend}; of retain: accuracy. difference: first "
        f"minus second on the same prompts, with its 95 % interval (Tango's score); * {_tested(found)}, or "
        "over the others for claims that something is the same; never learned: the same attack on a model "
        "that was trained without the concept; = as good as that: equivalent within "
        f"{MARGIN:.2f}",
        notes(used),
        compact=True,
    )


def _rate(r: Record | None, test: Tested, judges: Judges) -> Figure | None:
    if r is None:
        return None
    if test.claim.measure != "cer":
        return measured(r.measurements[test.claim.measure])
    figure = cer_figure(r, None, judges)
    gold = test.never if test.never is not r else None
    return figure.flagged("equivalent", gold is not None and equivalent(paired_records(gold, r)))
