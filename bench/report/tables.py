"""Tables of records: concept erasing rates, what is kept, transfer, and what attacks spent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from bench.core.types import Cost
from bench.errors import UnknownNameError
from bench.plan.cell import Cell
from bench.report.axes import (
    ATTACK,
    MODEL,
    TASK,
    Group,
    differing,
    grouped,
    labels,
    model_key,
    only,
    order,
)
from bench.report.frame import Figure, Line, Table, measured
from bench.report.notes import notes, size
from bench.store.metrics import Measurement, complement, mcnemar
from bench.store.record import Record
from bench.tasks.tasks import role

ALPHA = 0.05
_CER = "CER = 1 - ASR with its 95 % Wilson interval"


def cer_tables(results: Iterable[Record]) -> list[Table]:
    """Lay out concept erasing rates: attacks on the prompt, and apart from them those beyond it.

    Judges that are not the same measure ("asr-clip" is not "asr") have tables of their own, and so have
    retain and benign tasks of models that no target task is there for.
    """
    targets, others = _roles(list(results))
    known = {r.cell.task: metric for r in targets if (metric := judged(r))}
    metrics = list(dict.fromkeys(filter(None, map(judged, targets)))) or ["asr"]
    tables = []
    for metric in metrics if targets else ():
        mine = [r for r in targets if (judged(r) or known.get(r.cell.task, metrics[0])) == metric]
        plain = [r for r in mine if not r.cell.attacked]
        prompts = [r for r in mine if r.cell.attacked and r.space == "prompt"]
        beyond = [r for r in mine if r.cell.attacked and r.space != "prompt"]
        name = "Concept erasing rate" + (f", judged as {metric}" if metric != "asr" else "")
        if prompts or not beyond:
            tables.append(_cer_table([*plain, *prompts], others, name))
        if beyond:
            title = f"{name}, attacks beyond the prompt"
            tables.append(_cer_table([*plain, *beyond], others, title))
    beside = {model_key(r) for r in targets}
    alone = [r for r in others if model_key(r) not in beside]
    return [*tables, *([kept_table(alone)] if alone else [])]


def cer_table(results: Iterable[Record], title: str = "Concept erasing rate") -> Table:
    """Lay out the concept erasing rate: a line for each erased model, a column for each attack.

    Beside it the figures of retain and benign tasks on the same erased model.
    """
    return _cer_table(*_roles(list(results)), title)


def kept_table(results: Iterable[Record]) -> Table:
    """Lay out retain and benign tasks: a line for each erased model, a column for each measure."""
    beside = Beside(list(results))
    method_of = labels(beside.records, "method")
    groups = grouped(beside.records, across=TASK | ATTACK)

    def named(g: Group) -> tuple[str, ...]:
        return g.first.cell.concept.name, method_of(g.first)

    facets = [f for f in differing(groups, named) if f != "concept"]
    lines = [
        Line(
            (*named(g), *(g.facets.get(f, "") for f in facets)),
            (*beside.figures(g.first), _seconds(g.records)),
        )
        for g in groups
    ]
    return Table(
        "Retained and benign tasks",
        ("erased", "method", *facets),
        (*beside.columns, "s"),
        tuple(sorted(lines, key=lambda line: order(line.names))),
        "Means and rates with their 95 % intervals" + beside.sizes(),
        notes(beside.records),
    )


def plan_table(cells: Sequence[tuple[Cell, bool]]) -> Table:
    """Lay out the cells of a request, in their order, and which of them are done."""
    states = {cell.id: done for cell, done in cells}
    planned = [Record(cell, "ok") for cell, _ in cells]
    method_of, attack_of = labels(planned, "method"), labels(planned, "attack")
    lines = [
        Line(
            (r.cell.concept.name, r.cell.task, method_of(r), attack_of(r), r.cell.id),
            (Figure(r.cell.prompts), Figure(word="done" if states[r.cell.id] else "to do")),
        )
        for r in planned
    ]
    names = ("concept", "task", "method", "attack", "cell")
    return Table("Cells", names, ("prompts", "state"), tuple(lines))


def of_tasks(results: Iterable[Record], tasks: Collection[str]) -> list[Record]:
    """Return the records of some tasks, and of what stands beside those of target tasks."""
    records = list(results)
    concepts = {r.cell.concept for r in records if r.cell.task in tasks and _is_target(r)}
    return [
        r
        for r in records
        if r.cell.task in tasks or (r.cell.concept in concepts and not _is_target(r))
    ]


def transfer_table(results: Iterable[Record]) -> Table:
    """Lay out transfer: a line for each origin (method and attack), a column for each victim.

    The origin's own victim shows the attack itself, where its record is there.
    """
    attacked = [r for r in results if r.status == "ok" and r.cell.attacked and r.rows]
    moved = [r for r in attacked if r.cell.attack.name == "transfer"]
    victim_of = labels(attacked, "method")
    groups = grouped(moved, across=("method",))
    victims: list[dict[str, list[Record]]] = []
    for g in groups:
        found = defaultdict(list)
        for r in (*g.records, *_own(g, attacked)):
            found[victim_of(r)].append(r)
        victims.append(found)
    names = sorted({name for found in victims for name in found})

    def named(g: Group) -> tuple[str, ...]:
        return g.first.cell.task, _origin(g.first)

    facets = differing(groups, named)
    lines = [
        Line(
            (*named(g), *(g.facets.get(f, "") for f in facets)),
            tuple(_cer(only(found.get(v, [])), None) for v in names),
        )
        for g, found in zip(groups, victims, strict=True)
    ]
    return Table(
        "Transfer: CER of a victim under prompts that were found on another model",
        ("task", "found on / by", *facets),
        tuple(f"on {name}" for name in names),
        tuple(sorted(lines, key=lambda line: order(line.names))),
        _CER + _sizes(moved),
        notes(moved),
    )


def cost_table(results: Iterable[Record]) -> Table:
    """Lay out what attacks spent: a line for each cell, sums over its prompts."""
    records = [r for r in results if r.status == "ok" and r.rows and r.cell.attacked]
    method_of, attack_of = labels(records, "method"), labels(records, "attack")
    groups = grouped(records, across=())

    def named(g: Group) -> tuple[str, ...]:
        return g.first.cell.task, method_of(g.first), attack_of(g.first)

    facets = [f for f in differing(groups, named) if f != "N"]
    lines = []
    for g in groups:
        only(g.records)
        total = sum((row.cost for row in g.first.rows), Cost())
        counts = (total.images, total.forward, total.backward,
                  total.text_forward, total.text_backward)  # fmt: skip
        spent = (*(Figure(count) for count in counts), Figure(total.seconds, digits=0))
        figures = (size(g.first), *spent)
        lines.append(Line((*named(g), *(g.facets.get(f, "") for f in facets)), figures))
    return Table(
        "Cost of attacks",
        ("task", "method", "attack", *facets),
        ("N", "images", "fwd", "bwd", "text fwd", "text bwd", "s"),
        tuple(sorted(lines, key=lambda line: order(line.names))),
        "sums over N prompts. fwd, bwd: passes of one image through the denoiser; text fwd, text "
        "bwd: of one text through the text encoder; s: wall clock of the attack",
        notes(records),
    )


def judged(result: Record) -> str | None:
    """Return the name of a target's success rate: "asr", or that of a judge of another kind."""
    return next((m for m in result.measurements if m == "asr" or m.startswith("asr-")), None)


class Beside:
    """Retain and benign tasks, which stand beside the erased model that they were run on."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)
        self._task_of = _task_labels(records)
        self.by_model: dict[tuple[str, ...], list[Record]] = defaultdict(list)
        for r in records:
            self.by_model[model_key(r)].append(r)
        self._places = dict.fromkeys(
            place for r in records for place in self._places_of(r)
        )  # in the order of the records

    @property
    def columns(self) -> tuple[str, ...]:
        """What the figures are: task, measure, and N where it is a measure of a whole set."""
        return tuple(
            f"{task} {metric}".strip() + (f" (N={n})" if n else "")
            for task, metric, n in self._places
        )

    def figures(self, target: Record) -> tuple[Figure | None, ...]:
        """Return the figures of a target's erased model.

        Raises:
            StoreError: Two records are of one cell.
        """
        found = defaultdict(list)
        for r in self.by_model.get(model_key(target), ()):
            for place in self._places_of(r):
                found[place].append(r)
        return tuple(self._figure(place, only(found.get(place, []))) for place in self._places)

    def sizes(self) -> str:
        """Return the sizes of the tasks whose columns do not say them."""
        mine = [r for r in self.records if any(not n for *_, n in self._places_of(r))]
        return _sizes(mine, of_task=True)

    def _places_of(self, r: Record) -> list[tuple[str, str, int | None]]:
        task = self._task_of(r)
        if r.status != "ok":
            return [(task, "", None)]
        return [(task, m.called(metric), _size(m)) for metric, m in r.measurements.items()]

    @staticmethod
    def _figure(place: tuple[str, str, int | None], r: Record | None) -> Figure | None:
        if r is None:
            return None
        named = {m.called(metric): m for metric, m in r.measurements.items()}
        return measured(named[place[1]]) if r.status == "ok" else Figure(word=r.status)


def _cer_table(targets: Sequence[Record], others: Sequence[Record], title: str) -> Table:
    method_of, attack_of = labels(targets, "method"), labels(targets, "attack")
    attacks = sorted({attack_of(r) for r in targets}, key=lambda a: order([a]))
    keys = {model_key(r) for r in targets}
    beside = Beside([r for r in others if model_key(r) in keys])
    groups = grouped(targets, across=ATTACK)

    def named(g: Group) -> tuple[str, ...]:
        return g.first.cell.task, method_of(g.first)

    facets = differing(groups, named)
    lines = [
        Line(
            (*named(g), *(g.facets.get(f, "") for f in facets)),
            (*_rates(g, attacks, attack_of), *beside.figures(g.first), _seconds(g.records)),
        )
        for g in groups
    ]
    legend = _CER + ("" if "N" in facets else _sizes(targets)) + beside.sizes()
    if len(attacks) > 1:
        legend += f"; * differs from no attack (exact McNemar, p < {ALPHA})"
    return Table(
        title,
        ("task", "method", *facets),
        (
            *(f"CER, {'no attack' if a == 'none' else a}" for a in attacks),
            *beside.columns,
            "s",
        ),
        tuple(sorted(lines, key=lambda line: order(line.names))),
        legend,
        notes([*targets, *beside.records]),
    )


def _roles(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Split records into those of target tasks and those of retain and benign tasks."""
    sides: tuple[list[Record], list[Record]] = ([], [])
    for r in records:
        sides[0 if _is_target(r) else 1].append(r)
    return sides


def _is_target(r: Record) -> bool:
    if r.cell.attacked or judged(r):
        return True
    if r.status == "ok":
        return False
    try:
        return role(r.cell.task, r.cell.world) == "target"
    except UnknownNameError:  # a task of somebody's own
        return True


def _rates(
    g: Group, attacks: Sequence[str], attack_of: Callable[[Record], str]
) -> tuple[Figure | None, ...]:
    found = defaultdict(list)
    for r in g.records:
        found[attack_of(r)].append(r)
    plain = only([r for r in g.records if not r.cell.attacked])
    return tuple(_cer(only(found.get(a, [])), plain) for a in attacks)


def _cer(result: Record | None, plain: Record | None) -> Figure | None:
    """Return a cell's concept erasing rate, compared with that without an attack."""
    if result is None:
        return None
    if result.status != "ok":
        return Figure(word=result.status)
    asr = result.measurements.get(judged(result) or "")
    figure = measured(complement(asr)) if asr else Figure(word="n/a")
    whole = size(result)
    figure = replace(figure, attacked=whole.attacked, flags=(*figure.flags, *whole.flags))
    if plain is None or plain is result or plain.status != "ok":
        return figure
    p = _paired(plain, result)
    return replace(figure, p=p).flagged("differs", p is not None and p < ALPHA)


def _paired(first: Record, second: Record) -> float | None:
    """Return McNemar's p-value of two records of the same prompts, over those judged in both."""
    known = {(row.id, row.text, row.seed): row.success for row in first.rows}
    same = {(row.id, row.text, row.seed): row.success for row in second.rows}
    if known.keys() != same.keys():
        return None
    pairs = [(a, b) for row, a in known.items() if a is not None and (b := same[row]) is not None]
    return mcnemar([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None


def _own(g: Group, attacked: Sequence[Record]) -> list[Record]:
    """Return the record of the attack itself on an origin's own victim, if exactly one fits."""
    cell = g.first.cell
    victims = {r.cell.method.name for r in g.records}
    found = [
        r
        for r in attacked
        if f"{r.cell.method.name}/{r.cell.attack.name}" == _origin(g.first)
        and r.cell.method.name not in victims
        and replace(r.cell, method=cell.method, attack=cell.attack, assets=cell.assets) == cell
    ]
    return found if len(found) == 1 else []


def _origin(r: Record) -> str:
    traces = [row.trace for row in r.rows if "origin" in row.trace]
    return str(traces[0]["origin"] if traces else r.cell.attack.params.get("origin") or "?")


def _task_labels(records: Sequence[Record]) -> Callable[[Record], str]:
    """Return what a retain or benign task is called: with what differs between two of its name."""
    names: dict[int, str] = {}
    for task in {r.cell.task for r in records}:
        groups = grouped((r for r in records if r.cell.task == task), across=MODEL | ATTACK)
        facets = differing(groups, lambda g: (g.first.cell.task,))
        for g in groups:
            told = [f"{f}={value}" for f in facets if (value := g.facets.get(f))]
            names |= {id(r): " ".join([task, *told]) for r in g.records}
    return lambda r: names[id(r)]


def _sizes(records: Iterable[Record], *, of_task: bool = False) -> str:
    """Return the numbers of prompts, of each task or of all."""
    known = sorted({(r.cell.task if of_task else "", r.cell.prompts) for r in records})
    return "".join(f", {task} N={n}" if task else f", N={n}" for task, n in known)


def _size(m: Measurement) -> int | None:
    """Return N of a measure of a whole set, such as FID, which compares at equal N only."""
    return m.n if m.value is not None and m.low is None else None


def _seconds(records: Iterable[Record]) -> Figure:
    return Figure(sum(sum(r.seconds.values()) for r in records), digits=0)
