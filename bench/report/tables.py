"""Tables of records: concept erasing rates, what is kept, transfer, and what attacks spent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields, replace

from bench.core.errors import BenchError
from bench.core.types import Cost
from bench.plugins.registry import Ref
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
    placed,
)
from bench.report.corrected import AS_SEEN, Judges
from bench.report.frame import Figure, Line, Table, measured
from bench.report.notes import notes, size
from bench.report.statistics import (
    ALPHA,
    BEST_KNOWN,
    BEST_KNOWN_IS,
    Best,
    best_known,
    finds_prompts,
    paired_p,
)
from bench.report.subjects import asked
from bench.store.metrics import Measurement, complement, rate
from bench.store.record import Record
from bench.tasks.lookup import role

CER = AS_SEEN.legend
DISTANCES = frozenset({"fid", "kid", "frechet"})
"""Measures of a whole set of images that are the better the lower they are."""
SECONDS = "s: seconds of all stages of the cells of a line, on the machine that ran them"
Names = Callable[[Record], tuple[str, ...]]
Place = tuple[str, str, int | None]
"""Task, measure, and N where the measure is of a whole set."""


def laid_out(
    title: str,
    names: tuple[str, ...],
    named: Names,
    groups: Sequence[Group],
    columns: Iterable[str],
    figures: Callable[[Group], Iterable[Figure | None]],
    *,
    legend: str,
    records: Iterable[Record],
    hidden: str = "",
) -> Table:
    """Return a table with a line for each group: its names, the facets in which it differs, its figures.

    Args:
        title: As in :class:`Table`.
        names: Columns of the names.
        named: What the lines of a record are called, a word for each of these columns.
        groups: The records of each line.
        columns: Columns of figures.
        figures: A group's figures, one for each of these columns.
        legend: As in :class:`Table`.
        records: Those that the notes are about.
        hidden: A facet that the table shows otherwise.
    """
    facets = [facet for facet in differing(groups, named) if facet != hidden]
    lines = [
        Line((*named(g.first), *(g.facets.get(f, "") for f in facets)), tuple(figures(g)))
        for g in groups
    ]
    ordered = sorted(lines, key=lambda line: order(line.names))
    return Table(title, (*names, *facets), tuple(columns), tuple(ordered), legend, notes(records))


def cer_tables(
    records: Iterable[Record], ties: Mapping[int, str] | None = None, judges: Judges = AS_SEEN
) -> list[Table]:
    """Lay out concept erasing rates: attacks on the prompt, and apart from them those beyond it.

    Judges that are not the same measure ("asr-clip" is not "asr") have tables of their own, and so have
    retain and benign tasks of models that no target task is there for.

    Args:
        records: Of any tasks.
        ties: Letters of tie groups, by the ``id`` of a record.
        judges: What rates are corrected for.
    """
    targets, others = roles(records)
    known = {r.cell.task: metric for r in targets if (metric := judged(r))}
    metrics = list(dict.fromkeys(filter(None, map(judged, targets)))) or ["asr"]
    tables = []
    for metric in metrics if targets else ():
        mine = [r for r in targets if (judged(r) or known.get(r.cell.task, metrics[0])) == metric]
        plain = [r for r in mine if not r.cell.attacked]
        prompts = [r for r in mine if r.cell.attacked and r.space == "prompt"]
        beyond = [r for r in mine if r.cell.attacked and r.space != "prompt"]
        title = "Concept erasing rate" + (f", judged as {metric}" if metric != "asr" else "")
        if prompts or not beyond:
            tables.append(cer_table([*plain, *prompts, *others], title, ties, judges))
        if beyond:
            title += ", attacks beyond the prompt"
            tables.append(cer_table([*plain, *beyond, *others], title, ties, judges))
    beside = {model_key(r) for r in targets}
    alone = [r for r in others if model_key(r) not in beside]
    return [*tables, *([kept_table(alone)] if alone else [])]


def cer_table(
    records: Iterable[Record],
    title: str = "Concept erasing rate",
    ties: Mapping[int, str] | None = None,
    judges: Judges = AS_SEEN,
) -> Table:
    """Lay out the concept erasing rate: a line for each erased model, a column for each attack.

    After several attacks that find prompts comes the best known one; then the figures of retain and benign
    tasks on the same erased model. ``ties`` and ``judges`` are as in :func:`cer_tables`.
    """
    targets, others = roles(records)
    method_of, attack_of = labels(targets, "method"), labels(targets, "attack")
    attacks = sorted({attack_of(r) for r in targets}, key=lambda a: order([a]))
    keys = {model_key(r) for r in targets}
    beside = Beside([r for r in others if model_key(r) in keys])
    tried: dict[str, set[str]] = defaultdict(set)
    for r in filter(finds_prompts, targets):
        tried[r.cell.task].add(attack_of(r))
    several = len(set().union(*tried.values())) > 1

    def figures(g: Group) -> Iterator[Figure | None]:
        found = placed((attack_of(r), r) for r in g.records)
        plain = only(r for r in g.records if not r.cell.attacked)
        for attack in attacks:
            f = _cer(found.get(attack), plain, judges)
            yield replace(f, tie=(ties or {}).get(id(found[attack]), "")) if f else None
        if several:
            yield _best_known(found, tried[g.first.cell.task], judges)
        yield from beside.figures(g.first)
        yield _seconds(g.records)

    cer = judges.cer
    rates = (f"{cer}, {'no attack' if attack == 'none' else attack}" for attack in attacks)
    table = laid_out(
        title,
        ("task", "method"),
        lambda r: (r.cell.task, method_of(r)),
        grouped(targets, across=ATTACK),
        (*rates, *([f"{cer}, {BEST_KNOWN}"] if several else []), *beside.columns, "s"),
        figures,
        legend=judges.legend,
        records=[*targets, *beside.records],
    )
    if all(r.status != "ok" for r in (*targets, *beside.records)):  # no number to be read
        return replace(table, legend="")
    legend = judges.legend + ("" if "N" in table.names else _sizes(targets)) + beside.legend()
    if len(attacks) > 1:
        legend += f"; * differs from no attack (exact McNemar, p < {ALPHA})"
    if several:
        legend += f"; {BEST_KNOWN}: {BEST_KNOWN_IS}"
    if any(f and "fewer attacks" in f.flags for line in table.lines for f in line.figures):
        legend += f"; ^ {_fewer(targets)}"
    legend += f"; {SECONDS}"
    return replace(table, legend=legend)


def _fewer(records: Sequence[Record]) -> str:
    """Say why a line may be over fewer attacks than its task has."""
    if any(r.cell.attacked and r.status != "ok" for r in records):
        return "some attacks failed or were skipped, or were not run"
    return "over fewer attacks than in other lines of the task"


def _best_known(
    found: Mapping[str, Record], tried: Collection[str], judges: Judges
) -> Figure | None:
    """Return the rate under the best known prompt attack; marked where one of the task's is missing."""
    ran = [r for r in found.values() if finds_prompts(r) and r.status == "ok" and r.rows]
    if not ran:
        return None
    best = best_figure(best_known(found.values()), ran[0], judges)
    return best.flagged("fewer attacks", len(ran) < len(tried))


def best_figure(best: Iterable[Best], record: Record, judges: Judges = AS_SEEN) -> Figure:
    """Return the share of prompts that stay erased under the best known prompt attack.

    Args:
        best: Of each prompt.
        record: One of those that it is the best of, for their judge.
        judges: What rates are corrected for.
    """
    right = judges.rate(record, rate([each.success for each in best]))
    return measured(complement(right)) if right else Figure(word="unknown")


def kept_table(records: Iterable[Record]) -> Table:
    """Lay out retain and benign tasks: a line for each erased model, a column for each measure."""
    beside = Beside(records)
    method_of = labels(beside.records, "method")
    return laid_out(
        "Retained and benign tasks",
        ("erased", "method"),
        lambda r: (r.cell.concept.name, method_of(r)),
        grouped(beside.records, across=TASK | ATTACK),
        (*beside.columns, "s"),
        lambda g: (*beside.figures(g.first), _seconds(g.records)),
        legend=f"Means and rates with their 95 % intervals{beside.legend()}; {SECONDS}",
        records=beside.records,
        hidden="concept",
    )


def in_a_line(record: Record, told: set[str] | None = None) -> str:
    """Say how a cell ended; a reason that was ``told`` before is not said again."""
    cell, before = record.cell, set() if told is None else told
    text = f"{record.status:<7} {cell.task}, {cell.method.name}, attack {cell.attack.name}"
    if record.status != "ok":
        reason = "as before" if record.reason in before else record.reason
        before.add(record.reason)
        return f"{text}: {reason}"
    unchanged = record.erasure.get("notes", {}).get("unchanged")
    return f"{text}: the file changes nothing, its weights are the base's" if unchanged else text


def of_tasks(records: Iterable[Record], tasks: Collection[str]) -> list[Record]:
    """Return the records of some tasks, and of what stands beside those of target tasks."""
    known = list(records)
    concepts = {r.cell.concept for r in known if r.cell.task in tasks and _is_target(r)}
    return [
        r
        for r in known
        if r.cell.task in tasks or (r.cell.concept in concepts and not _is_target(r))
    ]


def picked(
    records: Iterable[Record],
    methods: Collection[str] = (),
    attacks: Collection[str] = (),
    seed: int | None = None,
) -> list[Record]:
    """Return the records of some methods, attacks and a seed; what a model keeps stands beside any attack.

    Args:
        records: Of any cells.
        methods: ``name`` or ``name:key=value,...``, as in a request; empty means all.
        attacks: Likewise.
        seed: Of erasure and attack; ``None`` means any.
    """
    of_methods, of_attacks = (list(map(Ref.parse, texts)) for texts in (methods, attacks))
    return [
        r
        for r in records
        if seed in {None, r.cell.seed}
        and seed in {None, r.cell.erased_with}
        and (not methods or _is_one(r.cell.method, of_methods))
        and (not attacks or _is_one(r.cell.attack, of_attacks) or not _is_target(r))
    ]


def _is_one(ref: Ref, wanted: Collection[Ref]) -> bool:
    """Say whether a plug-in has the name of one that is wanted, and the values that are given there."""
    return any(
        ref.name == one.name
        and all(k in ref.params and str(ref.params[k]) == value for k, value in one.params.items())
        for one in wanted
    )


def transfer_table(records: Iterable[Record], judges: Judges = AS_SEEN) -> Table:
    """Lay out transfer: a line for each origin (method and attack), a column for each victim.

    The origin's own victim shows the attack itself, where its record is there. ``judges`` is as in
    :func:`cer_tables`.
    """
    attacked = [r for r in records if r.status == "ok" and r.cell.attacked and r.rows]
    moved = [r for r in attacked if r.cell.attack.name == "transfer"]
    victim_of = labels(attacked, "method")
    groups = grouped(moved, across=("method",))
    found = {
        id(g): placed((victim_of(r), r) for r in (*g.records, *_own(g, attacked))) for g in groups
    }
    victims = sorted({victim for each in found.values() for victim in each})
    return laid_out(
        "Transfer: CER of a victim under prompts that were found on another model",
        ("task", "found on / by"),
        lambda r: (r.cell.task, _origin(r)),
        groups,
        (f"on {victim}" for victim in victims),
        lambda g: (_cer(found[id(g)].get(victim), None, judges) for victim in victims),
        legend=judges.legend + _sizes(moved),
        records=moved,
    )


def cost_table(records: Iterable[Record]) -> Table:
    """Lay out what attacks spent: a line for each cell, sums over its prompts."""
    attacked = [r for r in records if r.status == "ok" and r.rows and r.cell.attacked]

    def figures(g: Group) -> Iterator[Figure]:
        only(g.records)
        yield size(g.first)
        if not g.first.budget_known:
            yield from [Figure(word="unknown")] * len(fields(Cost))
            return
        *counts, seconds = astuple(sum((row.cost for row in g.first.rows), Cost()))
        yield from map(Figure, counts)
        yield Figure(seconds, digits=0)

    return laid_out(
        "Cost of attacks",
        ("task", "method", "attack"),
        by_cell(attacked),
        grouped(attacked, across=()),
        ("N", "images", "fwd", "bwd", "text fwd", "text bwd", "s"),
        figures,
        legend="sums over N prompts. fwd, bwd: passes of one image through the denoiser; text fwd, "
        "text bwd: of one text through the text encoder; s: wall clock of the attack",
        records=attacked,
        hidden="N",
    )


def by_cell(records: Sequence[Record]) -> Names:
    """Return what a record is called by task, method and attack."""
    method_of, attack_of = labels(records, "method"), labels(records, "attack")
    return lambda r: (r.cell.task, method_of(r), attack_of(r))


def judged(record: Record) -> str | None:
    """Return the name of a target's success rate: "asr", or that of a judge of another kind."""
    return next((m for m in record.measurements if m == "asr" or m.startswith("asr-")), None)


class Beside:
    """Retain and benign tasks, which stand beside the erased model that they were run on.

    Raises:
        StoreError: Two records are of one cell.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self._task_of = _task_labels(self.records)
        self._found = placed(
            ((model_key(r), place), r) for r in self.records for place in self._places_of(r)
        )
        self._places = dict.fromkeys(place for _, place in self._found)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the figures are: task, measure, and N where it is a measure of a whole set."""
        return tuple(
            f"{task} {metric}".strip() + (f" (N={n})" if n else "")
            for task, metric, n in self._places
        )

    def figures(self, target: Record) -> Iterator[Figure | None]:
        """Yield the figures of a target's erased model."""
        for place in self._places:
            r = self._found.get((model_key(target), place))
            if r is None:
                yield None
            elif r.status != "ok":
                yield Figure(word=r.status)
            else:
                named = {m.called(metric): m for metric, m in r.measurements.items()}
                yield measured(named[place[1]])

    def legend(self) -> str:
        """Return the sizes of tasks whose columns do not say them, and which measures are good if low."""
        mine = [r for r in self.records if any(not n for *_, n in self._places_of(r))]
        low = sorted({m.called(name) for r in self.records for name, m in r.measurements.items()
                      if name in DISTANCES})  # fmt: skip
        return _sizes(mine, of_task=True) + (f"; {', '.join(low)}: lower is better" if low else "")

    def _places_of(self, r: Record) -> list[Place]:
        task = self._task_of(r)
        if r.status != "ok":
            return [(task, "", None)]
        return [(task, m.called(metric), _size(m)) for metric, m in r.measurements.items()]


def roles(records: Iterable[Record]) -> tuple[list[Record], list[Record]]:
    """Split records into those of target tasks and those of retain and benign tasks.

    Those that ask for what was erased, too, are in neither: ``bench report --ripple`` shows them.
    """
    known = [(r, _is_target(r)) for r in records if not asked(r)]
    return [r for r, target in known if target], [r for r, target in known if not target]


def _is_target(r: Record) -> bool:
    if r.cell.attacked or judged(r):
        return True
    if r.status == "ok":
        return False
    try:
        return role(r.cell.task, r.cell.world) == "target"
    except BenchError:  # a task of somebody's own, or one that cannot be read here
        return True


def _cer(record: Record | None, plain: Record | None, judges: Judges = AS_SEEN) -> Figure | None:
    return cer_figure(record, plain, judges) if record else None


def cer_figure(record: Record, plain: Record | None, judges: Judges = AS_SEEN) -> Figure:
    """Return a cell's concept erasing rate, compared with that without an attack."""
    if record.status != "ok":
        return Figure(word=record.status)
    asr = record.measurements.get(judged(record) or "")
    right = judges.rate(record, asr) if asr else None
    figure = measured(complement(right)) if right else Figure(word="unknown" if asr else "n/a")
    whole = size(record)
    figure = replace(figure, attacked=whole.attacked, flags=(*figure.flags, *whole.flags))
    if plain is None or plain is record or plain.status != "ok":
        return figure
    p = paired_p(plain, record)
    return replace(figure, p=p).flagged("differs", p is not None and p < ALPHA)


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
    called: dict[int, str] = {}
    for task in {r.cell.task for r in records}:
        groups = grouped((r for r in records if r.cell.task == task), across=MODEL | ATTACK)
        facets = differing(groups, lambda r: (r.cell.task,))
        for g in groups:
            told = [f"{f}={value}" for f in facets if (value := g.facets.get(f))]
            called |= {id(r): " ".join([task, *told]) for r in g.records}
    return lambda r: called[id(r)]


def _sizes(records: Iterable[Record], *, of_task: bool = False) -> str:
    """Return the numbers of prompts, of each task or of all."""
    known = sorted({(r.cell.task if of_task else "", r.cell.prompts) for r in records})
    return "".join(f", {task} N={n}" if task else f", N={n}" for task, n in known)


def _size(m: Measurement) -> int | None:
    """Return N of a measure of a whole set, such as FID, which compares at equal N only."""
    return m.n if m.value is not None and m.low is None else None


def _seconds(records: Iterable[Record]) -> Figure:
    return Figure(sum(sum(r.seconds.values()) for r in records), digits=0)
