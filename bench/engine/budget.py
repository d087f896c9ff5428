"""How long a run may take: no cell is begun that would not be finished in time."""

from __future__ import annotations

import math
import time

from bench.core.errors import SpecError
from bench.plan.cell import Cell
from bench.report.costs import Forecast, finished, forecast, spoken
from bench.store.artifacts import Artifacts
from bench.store.record import Record
from bench.store.store import Store


class Time:
    """The time that a run may take, from now on.

    Args:
        hours: How long; ``None`` is no end.

    Raises:
        SpecError: It is no time.
    """

    def __init__(self, hours: float | None) -> None:
        if hours is not None and not (math.isfinite(hours) and hours > 0):
            raise SpecError(f"--max-hours: expected a number of hours above 0, got {hours:g}")
        self.hours, self._start, self._costs = hours, time.monotonic(), Forecast("cpu")
        self.up = ""

    def learn(self, device: str, store: Store, cache: Artifacts) -> None:
        """Learn from finished cells what others will cost, if there is an end."""
        if self.hours is not None:
            self._costs = forecast(device, finished(store), cache.has_erasure)

    def fits(self, cell: Cell) -> bool:
        """Say whether a cell would be finished in time; one of which nothing is known may be begun."""
        if self.hours is None:
            return True
        left = self.hours * 3600 - (time.monotonic() - self._start)
        needs = self._costs.of(cell).seconds or 0.0
        if left > needs:
            return True
        said = f"the next cell needs about {spoken(needs)}, {spoken(max(left, 0.0))} are left"
        self.up = f"{said} of --max-hours {self.hours:g}"
        return False

    def count(self, record: Record) -> None:
        """Learn from a cell that was finished now."""
        self._costs.learn(record)
