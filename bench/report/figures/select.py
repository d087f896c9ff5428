"""Which records a figure is made of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from bench.errors import SpecError
from bench.report.tables import judged
from bench.store.metrics import Measurement
from bench.store.record import Record


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asks for; empty means everything.

    Args:
        tasks: Names of target tasks.
        methods: Names of methods.
        attacks: Names of attacks.
    """

    tasks: Collection[str] = ()
    methods: Collection[str] = ()
    attacks: Collection[str] = ()

    def of(self, records: Iterable[Record]) -> list[Record]:
        """Return the finished records of target tasks that are asked for."""
        return [
            r
            for r in records
            if r.status == "ok"
            and judged(r)
            and (not self.tasks or r.cell.task in self.tasks)
            and (not self.methods or r.cell.method.name in self.methods)
            and (not self.attacks or r.cell.attack.name in self.attacks)
        ]


EVERYTHING = Wanted()


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
