"""What a run shows when it ends."""

from __future__ import annotations

from collections.abc import Iterable

from bench.report.corrected import AS_SEEN, Judges
from bench.report.frame import Table
from bench.report.ripple import ripple_tables
from bench.report.tables import cer_tables
from bench.store.record import Record


def summary(records: Iterable[Record], judges: Judges = AS_SEEN) -> list[Table]:
    """Lay out concept erasing rates, and what erasures did to subjects near the concept and far from it."""
    known = list(records)
    rates = cer_tables(known, judges=judges)
    return [*rates, *ripple_tables(known, each=False, judges=judges)]
