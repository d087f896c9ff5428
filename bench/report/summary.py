"""What a run shows when it ends."""

from __future__ import annotations

from collections.abc import Iterable

from bench.report.frame import Table
from bench.report.ripple import ripple_tables
from bench.report.tables import cer_tables
from bench.store.record import Record


def summary(records: Iterable[Record]) -> list[Table]:
    """Lay out concept erasing rates, and what erasures did to subjects near the concept and far from it."""
    known = list(records)
    return [*cer_tables(known), *ripple_tables(known, each=False)]
