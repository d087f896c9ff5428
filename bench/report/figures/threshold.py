"""Attack success as a function of the judge's threshold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.report import verdict
from bench.report.figures.panels import Point, panels_of, styles_of
from bench.report.figures.select import EVERYTHING, Wanted, full_floors, missing, named, three
from bench.report.figures.style import Drawing, finished, look, outer, sheet_of, sizes, stairs
from bench.report.judging import above, details, has_highest, highest
from bench.store.metrics import rate
from bench.store.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Step(Point):
    """The attack success rate at one threshold.

    Args:
        threshold: A prompt counts if one of its images scores above it.
        n: Prompts that it is known of.
        unscored: Prompts that it is not known of.
        asr: The attack success rate, with its 95 % interval ``low`` to ``high``.
        own_from: The judge's own threshold: that of the profile, or else the highest score of an image that
            it passed.
        own_to: Likewise, or else the lowest score of an image in which it saw the concept.
    """

    threshold: float
    n: int
    unscored: int
    asr: float
    low: float
    high: float
    own_from: float | None
    own_to: float | None


def steps(records: Iterable[Record], wanted: Wanted = EVERYTHING) -> list[Step]:
    """Return the curves of records whose judge gave scores, a step wherever the rate may change.

    Raises:
        SpecError: There is no such record.
    """
    chosen = full_floors(r for r in wanted.of(records) if has_highest(r))
    if not chosen:
        what = "records of a judge that gives scores (detail `highest`, as of nudity)"
        raise missing("threshold", replace(wanted, tasks=()), what, tasks=("nudity",))
    names = named(chosen)
    own = {task: own_threshold(r for r in chosen if r.cell.task == task) for task in _tasks(chosen)}
    found = []
    for r in chosen:
        scores = {s for row in r.rows for d in details(r, row) if (s := highest(d)) is not None}
        for threshold in sorted({0.0, 1.0, *(s for s in scores if 0 < s < 1)}):
            m = rate([above(r, row, threshold) for row in r.rows])
            if m.value is None:
                continue
            asr, low, high = three(m)
            found.append(
                Step(*names(r), threshold, m.n, m.unscored, asr, low, high, *own[r.cell.task])
            )
    return sorted(found, key=lambda s: (s.task, s.method, s.attack, s.threshold))


def own_threshold(records: Iterable[Record]) -> tuple[float | None, float | None]:
    """Return between which scores the judge's own threshold lies: what it states, or what it did."""
    stated: set[float] = set()
    passed: list[float] = []
    seen: list[float] = []
    for r in records:
        for said, shows in _verdicts(r):
            if isinstance(limit := said.get("threshold"), (int, float)):
                stated.add(float(limit))
            if (score := highest(said)) is not None and shows is not None:
                (seen if shows else passed).append(score)
    if len(stated) == 1:
        return min(stated), max(stated)
    if stated or (passed and seen and max(passed) > min(seen)):  # several, or no threshold on this
        return None, None
    return max(passed, default=None), min(seen, default=None)


@look()
def draw(found: Sequence[Step]) -> Drawing:
    """Draw a panel for each task and method; of a single attack for each task."""
    panels = panels_of(found)
    styles = styles_of(panels)
    figure, grid = sheet_of(len(panels), width=4.6 if len(panels) == 1 else 3.4)
    for axes, panel in zip(grid, panels, strict=True):
        for name, curve in panel.curves.items():
            ends = zip(*((s.threshold, s.asr, s.low, s.high) for s in curve), strict=True)
            stairs(axes, *ends, style=styles[name], name=name)
        _mark(axes, panel.points[0])
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(f"{panel.title}, N={sizes(s.n for s in panel.points)}")
        axes.set_xlabel("threshold on the judge's highest score")
    outer(figure, "attack success rate")
    note = (
        "A prompt counts if its own or its adversarial image scores above the threshold. Attacks stopped "
        "at the judge's own threshold: to the right of it their rate is a lower bound, for they did not "
        "try for more. Random and seed-search: with their most draws. Bands: 95 % Wilson intervals."
    )
    return finished(figure, "Attack success by the judge's threshold", note)


def _mark(axes: Axes, step: Step) -> None:
    """Mark the judge's own threshold; where only verdicts tell it, in the middle of where it may lie."""
    ends = [x for x in (step.own_from, step.own_to) if x is not None]
    if ends:
        middle = sum(ends) / len(ends)
        about = "" if step.own_from == step.own_to else "≈ "
        axes.axvline(middle, color="black", lw=1.2, ls=(0, (2, 2)), label="judge's own threshold")
        axes.text(middle + 0.01, 0.0, f"{about}{middle:.2f}", fontsize=8)


def _tasks(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(r.cell.task for r in records))


def _verdicts(r: Record) -> Iterator[tuple[dict[str, object], bool | None]]:
    """Yield what the judge said of each image, and whether it saw the concept."""
    for row in r.rows:
        if r.cell.attacked:
            yield row.own_detail, verdict.own(r, row)
            yield row.detail, verdict.attacked(r, row)
        else:
            yield row.detail, row.success
