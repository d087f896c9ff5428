"""Concept erasing rate against what is kept: how much utility does robustness cost?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from bench.report.axes import ATTACK, Group, differing, grouped, labels, model_key
from bench.report.figures.select import EVERYTHING, Wanted, missing, three
from bench.report.figures.style import (
    COLOURS,
    MARKERS,
    Drawing,
    Styles,
    finished,
    look,
    none_first,
    sheet_of,
)
from bench.report.statistics import BEST_KNOWN, finds_prompts, union
from bench.report.tables import DISTANCES, roles
from bench.report.text import plain
from bench.store.metrics import complement, rate
from bench.store.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Point:
    """An erased model: how robust it is, and what it keeps.

    Args:
        task: Whose concept was erased.
        method: By what.
        attacks: Over which attacks the rate is.
        n: Prompts that the rate rests on.
        cer: The concept erasing rate, with its 95 % interval ``low`` to ``high``.
        measure: What is kept, as "retain accuracy".
        kept: Its value, with its interval where the measure has one.
        kept_n: Images that it rests on.
        front: Whether no other model of the task is as good in both and better in one.
    """

    task: str
    method: str
    attacks: str
    n: int
    cer: float
    low: float
    high: float
    measure: str
    kept: float
    kept_low: float | None
    kept_high: float | None
    kept_n: int
    front: bool = False


def points(
    records: Iterable[Record], wanted: Wanted = EVERYTHING, measure: str = ""
) -> list[Point]:
    """Return a point for each erased model.

    The rate is that under the best known prompt attack, without an attack where there is none, or, where
    attacks are asked for, under all of these together.

    Args:
        records: Any.
        wanted: Which of them.
        measure: "TASK METRIC" of a retain or benign task, as "retain accuracy"; by default the first.

    Raises:
        SpecError: There are none.
    """
    known = list(records)
    chosen = wanted.of(known)
    if not wanted.attacks:
        chosen = [r for r in chosen if finds_prompts(r) or not r.cell.attacked]
    utility = {
        (model_key(r), f"{r.cell.task} {m.called(metric)}"): m
        for r in roles(known)[1]
        if r.status == "ok"
        for metric, m in r.measurements.items()
        if m.value is not None
    }
    having = {model_key(r) for r in chosen}
    names = list(dict.fromkeys(name for key, name in utility if key in having))
    name = measure or next(iter(names), "")
    if name not in names:
        what = f"records with {measure or 'a retain or benign task'} beside a target task"
        other = f" (there is {', '.join(names)})" if names else ""
        tasks = (*(wanted.tasks or ("church",)), "retain")
        raise missing(
            "pareto", replace(wanted, tasks=()), what + other, attacks=("none",), tasks=tasks
        )
    attack_of, found = labels(chosen, "attack"), []
    for method, g in _lines(r for r in chosen if (model_key(r), name) in utility):
        cer = complement(rate([best.success for best in union(g.records)]))
        if cer.value is not None:
            ran = ", ".join(sorted(attack_of(r) for r in g.records if r.cell.attacked))
            kept = utility[model_key(g.first), name]
            value, ends = float(kept.value or 0.0), (kept.low, kept.high)
            called = g.first.cell.task, method, ran or "no attack"
            found.append(Point(*called, cer.n, *three(cer), name, value, *ends, kept.n))
    return list(_with_front(sorted(found, key=lambda p: (p.task, p.method))))


def _lines(records: Iterable[Record]) -> Iterator[tuple[str, Group]]:
    """Yield the lines that a table of these records has, with names of which no two of a task are alike."""
    known = list(records)
    method_of = labels(known, "method")
    alike: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for g in grouped(known, across=ATTACK):
        alike[g.first.cell.task, method_of(g.first)].append(g)
    for (_, method), groups in alike.items():
        facets = differing(groups, lambda r: (r.cell.task,)) if groups[1:] else []
        for g in groups:
            told = [f"{f}={value}" for f in facets if (value := g.facets.get(f))]
            yield " ".join([method, *told]), g


@look()
def draw(found: Sequence[Point]) -> Drawing:
    """Draw a panel for each task."""
    tasks = {task: list(some) for task, some in groupby(found, key=lambda p: p.task)}
    figure, grid = sheet_of(len(tasks), height=2.9)
    methods = none_first(p.method for p in found)
    colours, markers = Styles(methods, COLOURS), Styles(methods, MARKERS)
    for axes, (task, some) in zip(grid, tasks.items(), strict=True):
        axes.set_title(plain(task))
        for p in sorted(some, key=lambda p: methods.index(p.method)):
            axes.errorbar(
                p.cer, p.kept, xerr=[[p.cer - p.low], [p.high - p.cer]], yerr=_vertical(p),
                fmt=markers[p.method], color=colours[p.method], label=plain(p.method),
                elinewidth=1, capsize=2, markeredgecolor="black", markeredgewidth=0.6,
            )  # fmt: skip
        axes.set_xlim(-0.03, 1.03)
        axes.set_xlabel("concept erasing rate")
        axes.set_ylabel(plain(some[0].measure))
        if _falling(some[0].measure):
            axes.invert_yaxis()
        _front(axes, some)
    return finished(figure, _title(found), _note(found))


def _title(found: Sequence[Point]) -> str:
    sizes = _span(p.n for p in found)
    kept = _span(p.kept_n for p in found)
    measure = found[0].measure
    return f"Concept erasing rate (N={sizes}) against {measure} (N={kept}), 95 % intervals"


def _note(found: Sequence[Point]) -> str:
    attacks = sorted({p.attacks for p in found}, key=len)
    rate = f"CER under {attacks[-1]}."
    if attacks[-1] != "no attack":
        rate = (
            f"CER: a prompt counts as erased only if none of these attacks brings it back: {attacks[-1]}. "
            f"That is the {BEST_KNOWN}, without floors and attacks beyond the prompt, unless --attack "
            "names others."
        )
    few = [f"{p.method} on {p.task}: {p.attacks}" for p in found if p.attacks != attacks[-1]]
    if few and len(few) <= 6:
        rate += f" Fewer attacks: {'; '.join(few)}."
    elif few:
        rate += (
            f" {len(few)} of {len(found)} points rest on fewer attacks: see the numbers (--data)."
        )
    best = "top right" if not _falling(found[0].measure) else "the top right (the axis is reversed)"
    front = "Dashed, around what it beats: the Pareto front of the values, without their intervals."
    return f"{rate} Best is {best}. {front}"


def _falling(measure: str) -> bool:
    return any(word.startswith(tuple(DISTANCES)) for word in measure.lower().split())


def _with_front(found: Sequence[Point]) -> Iterator[Point]:
    """Yield each point, and whether it is on the front of its task."""
    for p in found:
        rivals = [_goodness(q) for q in found if q.task == p.task]
        mine = _goodness(p)
        beaten = any(r != mine and r[0] >= mine[0] and r[1] >= mine[1] for r in rivals)
        yield replace(p, front=not beaten)


def _goodness(p: Point) -> tuple[float, float]:
    return p.cer, -p.kept if _falling(p.measure) else p.kept


def _front(axes: Axes, some: Sequence[Point]) -> None:
    """Draw the front as the edge of what is beaten by a point of it, above all whiskers."""
    front = sorted({(p.cer, p.kept) for p in some if p.front})
    left, (bottom, top) = axes.get_xlim()[0], axes.get_ylim()
    x, y = zip((left, front[0][1]), *front, strict=True)
    axes.fill_between(x, y, bottom, step="pre", color="#000000", alpha=0.06, lw=0, zorder=0)
    axes.step(
        (*x, x[-1]), (*y, bottom), where="pre", color="black", ls="--", lw=1.4, zorder=5,
        label="Pareto front",
    )  # fmt: skip
    axes.set_ylim(bottom, top)


def _vertical(p: Point) -> list[list[float]] | None:
    if p.kept_low is None or p.kept_high is None:
        return None
    return [[p.kept - p.kept_low], [p.kept_high - p.kept]]


def _span(numbers: Iterable[int]) -> str:
    known = sorted(set(numbers))
    return f"{known[0]}" if len(known) == 1 else f"{known[0]} to {known[-1]}"
