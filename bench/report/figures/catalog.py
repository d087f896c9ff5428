"""Which figures there are, those that records alone are enough for, and their numbers as a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Any

from bench.core.errors import UnknownNameError

if TYPE_CHECKING:  # a list of names needs none of these
    from bench.report.figures.select import Wanted
    from bench.report.figures.style import Drawing
    from bench.store.record import Record

FIGURES = {
    "pareto": "concept erasing rate against what is kept, with the Pareto front",
    "budget": "concept erasing rate by what the attacker may spend: images and passes",
    "threshold": "attack success by the judge's threshold, with the judge's own",
    "examples": "pictures of prompts: original, erased, attacked, never learned; the judge's verdicts",
    "sensitivity": "how adversarial prompts change neurons, by timestep: ESD against P-ESD (Eq. 5)",
    "pruning": "pruning before, while and after erasing, and which layers are pruned",
    "neurons": "where the concept's neurons are active: original, erased, attacked",
}
ALONE = ("pareto", "budget", "threshold")
"""Those that records alone are enough for; for the others a model runs (:mod:`bench.engine.figures`)."""
Made = tuple["Drawing", Sequence[Any]]
"""A drawing and its numbers: dataclasses of one kind."""


def figure_about(name: str) -> str:
    """Return what a figure shows.

    Raises:
        UnknownNameError: There is no such figure.
    """
    if name not in FIGURES:
        raise UnknownNameError("figure", name, FIGURES)
    return FIGURES[name]


def from_records(name: str, records: Sequence[Record], wanted: Wanted, measure: str = "") -> Made:
    """Make a figure that records alone are enough for.

    Raises:
        KeyError: It is none of them.
        SpecError: There are no records for it.
    """
    if name == "pareto":
        return _pareto(records, wanted, measure)
    return {"budget": _budget, "threshold": _threshold}[name](records, wanted)


def _pareto(records: Sequence[Record], wanted: Wanted, measure: str) -> Made:
    from bench.report.figures import pareto

    found = pareto.points(records, wanted, measure)
    return pareto.draw(found), found


def _budget(records: Sequence[Record], wanted: Wanted) -> Made:
    from bench.report.figures import budget

    found = budget.steps(records, wanted)
    return budget.draw(found), found


def _threshold(records: Sequence[Record], wanted: Wanted) -> Made:
    from bench.report.figures import threshold

    found = threshold.steps(records, wanted)
    return threshold.draw(found), found


def csv_of(numbers: Sequence[Any]) -> str:
    """Return a figure's numbers as CSV, a column for each field; what is unknown is empty."""
    from bench.report.text import csv_cell

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([field.name for field in fields(numbers[0])])
    for each in numbers:
        writer.writerow([csv_cell(v) if isinstance(v, str) else v for v in astuple(each)])
    return buffer.getvalue()
