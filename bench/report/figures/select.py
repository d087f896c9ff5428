"""Which records a figure is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from bench.core.digest import digest
from bench.core.errors import SpecError
from bench.plan.floors import FLOORS
from bench.report.axes import differing, grouped, labels
from bench.report.tables import judged, picked
from bench.store.metrics import Measurement
from bench.store.record import Record


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asks for; empty means everything.

    Args:
        tasks: Names of target tasks.
        methods: Names of methods.
        attacks: Names of attacks.
        seed: Of erasure and attack; ``None`` means any.
    """

    tasks: Collection[str] = ()
    methods: Collection[str] = ()
    attacks: Collection[str] = ()
    seed: int | None = None

    def of(self, records: Iterable[Record]) -> list[Record]:
        """Return the finished records of target tasks that are asked for."""
        return [
            r
            for r in picked(records, self.methods, self.attacks, self.seed)
            if r.status == "ok" and judged(r) and (not self.tasks or r.cell.task in self.tasks)
        ]


EVERYTHING = Wanted()


def full_floors(records: Iterable[Record]) -> list[Record]:
    """Return records without floors of which there is one with more draws: its curve holds theirs."""
    found = list(records)
    most: dict[str, int] = defaultdict(int)
    for r in found:
        most[_but_draws(r)] = max(most[_but_draws(r)], _draws(r))
    return [r for r in found if _draws(r) == most[_but_draws(r)]]


def _but_draws(r: Record) -> str:
    params = {name: value for name, value in r.cell.attack.params.items() if name != "draws"}
    return digest(replace(r.cell, attack=replace(r.cell.attack, params=params)).values)


def _draws(r: Record) -> int:
    draws = r.cell.attack.params.get("draws")
    return draws if r.cell.attack.name in FLOORS and isinstance(draws, int) else 0


Names = Callable[[Record], tuple[str, str, str]]


def named(records: Sequence[Record]) -> Names:
    """Return what a record is called by task, method and attack; no two records are called alike.

    Where these three are the same, in what the records differ is told beside the method: "esd seed=1".
    """
    method_of, attack_of = labels(records, "method"), labels(records, "attack")
    alike: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for r in records:
        alike[r.cell.task, method_of(r), attack_of(r)].append(r)
    called: dict[int, tuple[str, str, str]] = {}
    for (task, method, attack), some in alike.items():
        groups = grouped(some, across=())
        facets = differing(groups, lambda r: (r.cell.task,)) if some[1:] else []
        for g in groups:
            told = [f"{f}={value}" for f in facets if (value := g.facets.get(f))]
            called |= {id(r): (task, " ".join([method, *told]), attack) for r in g.records}
    return lambda r: called[id(r)]


def missing(
    figure: str,
    wanted: Wanted,
    what: str,
    *,
    methods: Sequence[str] = ("esd",),
    attacks: Sequence[str] = ("unlearndiff",),
    tasks: Sequence[str] = ("church",),
) -> SpecError:
    """Return the error of a figure that there are no records for, with the command that makes them.

    Args:
        figure: Its name.
        wanted: What the user asked for: it comes first in the command.
        what: What was expected.
        methods: What the command runs where the user did not say.
        attacks: Likewise.
        tasks: Likewise.
    """
    asked = {"method": wanted.methods, "attack": wanted.attacks, "task": wanted.tasks}
    own = {"method": methods, "attack": attacks, "task": tasks}
    of = " ".join(name for names in asked.values() for name in names)
    options = [f"--{axis} {name}" for axis in asked for name in asked[axis] or own[axis]]
    return SpecError(
        f"figure {figure}: expected {what}{of and ' of '}{of}, found none: "
        f"run `bench run {' '.join(options)}`"
    )


def three(m: Measurement) -> tuple[float, float, float]:
    """Return a rate's value and the ends of its interval."""
    if m.value is None or m.low is None or m.high is None:
        raise ValueError("a rate of nothing has no value")
    return m.value, m.low, m.high
