"""What the leaderboard's first page shows, as data: a tab for each task, a line for each erased model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from bench.core.digest import digest
from bench.plan.floors import FLOORS
from bench.report.axes import (
    ATTACK,
    Group,
    differing,
    grouped,
    labels,
    model_key,
    only,
    order,
    placed,
)
from bench.report.command import catalogued
from bench.report.corrected import AS_SEEN, Judges
from bench.report.floors import NEVER
from bench.report.frame import MARKS, Figure
from bench.report.notes import notes
from bench.report.statistics import BEST_KNOWN, best_known, detectable, finds_prompts, tie_groups
from bench.report.tables import Beside, best_figure, cer_figure, judged, roles
from bench.site.flags import Flag, flags, number
from bench.site.words import ABOUT, about_attack, about_utility
from bench.store.record import Record

Kept = Mapping[tuple[str, str, str], Sequence[Record]]
"""Records of retain and benign tasks, by the erased model."""
Base = Mapping[tuple[str, str], Sequence[Record]]
"""The same of the unchanged model, by model and type."""
Kind = Literal["text", "rate", "number", "bytes", "letters", "flags"]
Role = Literal["", "base", "given", "reference"]
BEST, PLAIN, TIES = "best", "attack none", "ties"
MOST = 200
"""Lines of which every two are compared."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a tab.

    Args:
        key: What links and filters call it.
        title: Its header.
        about: Its definition.
        kind: How its entries are drawn.
        reference: What the same attack finds in a model that never learned the concept.
    """

    key: str
    title: str
    about: str
    kind: Kind
    reference: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A figure, and the cell that it is of."""

    figure: Figure
    cell: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a tab.

    Args:
        key: What links call it.
        names: By column.
        entries: By column.
        outcomes: For each column of a rate on the task's prompts, what became of each prompt: ``1`` the
            concept is there, ``0`` it is not, ``?`` unscored.
        prompts: Names the prompts: two lines of equal ones can be paired.
        flags: Warnings.
        ids: Names of the prompts.
        role: ``base`` for an unchanged model, ``given`` for one that is no shipped name, ``reference`` for
            one that never learned the concept.
    """

    key: str
    names: Mapping[str, str]
    entries: Mapping[str, Entry]
    outcomes: Mapping[str, str]
    prompts: str
    flags: tuple[Flag, ...]
    ids: tuple[str, ...]
    role: Role


@dataclass(frozen=True, slots=True)
class Tab:
    """One task.

    Args:
        key: What links call it.
        title: Its name.
        columns: Of its table.
        lines: In no order.
        notes: What a reader must know of them.
        prompts: The names of the prompts that a line's ``prompts`` stands for.
        records: What it was made of.
    """

    key: str
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    prompts: Mapping[str, tuple[str, ...]]
    records: tuple[Record, ...]


def tabs(records: Iterable[Record], judges: Judges = AS_SEEN) -> list[Tab]:
    """Return the tabs of target tasks, in the order of their names.

    Args:
        records: Any.
        judges: What rates are corrected for.
    """
    targets, others = roles(records)
    found: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    metrics = {(r.cell.world, r.cell.task): metric for r in targets if (metric := judged(r))}
    for r in targets:
        known = metrics.get((r.cell.world, r.cell.task), "asr")
        found[r.cell.task, r.cell.world, judged(r) or known].append(r)
    names = _Names(targets)
    beside: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for r in others:
        beside[model_key(r)].append(r)
    tasks = [task for task, *_ in found]
    worlds = {world for _, world, _ in found}
    result = []
    for task, world, metric in sorted(found, key=order):
        more = [metric] if tasks.count(task) > len(worlds) else []
        title = " ".join([task, *([world] if len(worlds) > 1 else []), *more])
        result.append(_tab(title, found[task, world, metric], beside, names, judges))
    return result


class _Names:
    """What methods and attacks are called, the same in every tab."""

    def __init__(self, targets: Sequence[Record]) -> None:
        method, attack = labels(targets, "method"), labels(targets, "attack")
        self.method = {id(r): method(r) for r in targets}
        self.attack = {id(r): attack(r) for r in targets}


def _tab(
    title: str,
    targets: Sequence[Record],
    kept: Kept,
    names: _Names,
    judges: Judges,
) -> Tab:
    groups = grouped(targets, across=ATTACK)
    shown = differing(groups, lambda r: (names.method[id(r)],))
    mine = {key: kept[key] for r in targets if (key := model_key(r)) in kept}
    beside = Beside([r for some in mine.values() for r in some])
    base = _base(groups, mine)
    lines = [_line(g, shown, names, mine, base, beside, judges) for g in groups]
    lines = _with_ties(_with_gaps(lines, _attacks(targets, names)))
    columns = tuple(_columns(targets, shown, names, beside, lines))
    prompts = {line.prompts: line.ids for line in lines}
    said = () if judges.known is None else (f"{judges.legend}; so are pairs and figures.",)
    told = (*said, *_detectable(targets), *notes(targets))
    return Tab(title, title, columns, tuple(lines), told, prompts, (*targets, *beside.records))


def _detectable(targets: Iterable[Record]) -> Iterator[str]:
    """Say how small a difference between two lines can be found."""
    for n in sorted({r.cell.prompts for r in targets if r.status == "ok"}):
        found = detectable(n)
        least = f"from {100 * found.share:.0f} points on" if found else "at no size"
        yield f"N={n}: a test of two methods can find a difference {least}, if all of it is one way"


def _columns(
    targets: Sequence[Record],
    shown: Sequence[str],
    names: _Names,
    beside: Beside,
    lines: Sequence[Line],
) -> Iterator[Column]:
    yield Column("method", "Method", ABOUT["method"], "text")
    for facet in shown:
        yield Column(f"facet {facet}", facet, ABOUT["facet"], "text")
    if any(BEST in line.entries for line in lines):
        yield Column(BEST, BEST_KNOWN.capitalize(), ABOUT[BEST], "rate", _reference(lines, BEST))
    if any(TIES in line.entries for line in lines):
        yield Column(TIES, "Ties", ABOUT["ties"], "letters")
    spaces = {names.attack[id(r)]: (r.cell.attack.name, r.space) for r in targets}
    attacks, floors = list[Column](), list[Column]()
    for attack in sorted(spaces, key=lambda a: (_rank(spaces[a][0]), *order([a]))):
        key, (name, space) = f"attack {attack}", spaces[attack]
        title = "No attack" if attack == "none" else attack
        place = floors if name in FLOORS else attacks
        place.append(Column(key, title, about_attack(name, space), "rate", _reference(lines, key)))
    yield from attacks
    for column in beside.columns:
        figures = [e.figure for line in lines if (e := line.entries.get(f"kept {column}"))]
        kind: Kind = "rate" if all(map(_is_rate, figures)) else "number"
        yield Column(f"kept {column}", column, about_utility(column), kind)
    yield Column("seconds", "Erase, s", ABOUT["seconds"], "number")
    yield Column("bytes", "Delta", ABOUT["bytes"], "bytes")
    yield Column("flags", "Flags", ABOUT["flags"], "flags")
    yield from floors  # last: with all of them a table is wider than a laptop


def _line(
    g: Group,
    shown: Sequence[str],
    names: _Names,
    kept: Kept,
    base: Base,
    beside: Beside,
    judges: Judges,
) -> Line:
    found = placed((f"attack {names.attack[id(r)]}", r) for r in g.records)
    plain = only(r for r in g.records if not r.cell.attacked)
    ids = {key: r.cell.id for key, r in found.items()}
    entries = {key: Entry(cer_figure(r, plain, judges), ids[key]) for key, r in found.items()}
    asked = _prompts(next((r for r in g.records if r.rows), g.first))
    ran = {
        key: r for key, r in found.items() if r.status == "ok" and r.rows and _prompts(r) == asked
    }
    outcomes = {key: "".join(_OUTCOMES[row.success] for row in r.rows) for key, r in ran.items()}
    if best := best_known(ran.values()):
        outcomes[BEST] = "".join(_OUTCOMES[each.success] for each in best)
        entries[BEST] = Entry(best_figure(best, next(iter(ran.values())), judges))
    for column, figure in zip(beside.columns, beside.figures(g.first), strict=True):
        if figure:
            entries[f"kept {column}"] = Entry(figure)
    entries |= {key: Entry(f) for key, f in _erasing(g.records)}
    mine = kept.get(model_key(g.first), ())
    cell = g.first.cell
    unchanged = base.get((cell.model, cell.dtype), ())
    return Line(
        min(ids.values()),
        {"method": names.method[id(g.first)]} | {f"facet {f}": g.facets.get(f, "") for f in shown},
        entries,
        outcomes,
        digest(asked),
        flags(g.records, mine, unchanged),
        tuple(prompt for prompt, *_ in asked),
        _role(g.first),
    )


def _rank(attack: str) -> int:
    """Return where an attack's column stands among others: what was handed in is last."""
    return int(attack == "submitted")


def _role(r: Record) -> Role:
    """Return what a line is if no method erased it here; a model of the user's own may be an erased one."""
    if r.cell.method.name == "none":
        return "base" if catalogued(r.cell.model) else "given"
    return "reference" if r.cell.method.name == NEVER else ""


_OUTCOMES: dict[bool | None, str] = {True: "1", False: "0", None: "?"}


def _prompts(r: Record) -> list[tuple[str, str, int]]:
    return [(row.id, row.text, row.seed) for row in r.rows]


def _attacks(targets: Iterable[Record], names: _Names) -> dict[str, str]:
    """Return by their columns the attacks that find prompts."""
    found = [names.attack[id(r)] for r in targets if finds_prompts(r)]
    return {f"attack {name}": name for name in found}


def _with_gaps(lines: Iterable[Line], attacks: Mapping[str, str]) -> list[Line]:
    """Return the lines, marked where an attack that others met is missing."""
    marked = []
    for line in lines:
        gap = [name for key, name in attacks.items() if key not in line.entries]
        more: tuple[Flag, ...] = ()
        if gap and line.role in ("", "given"):
            some = "fewer attacks" if len(gap) < len(attacks) else "not attacked"
            why = f"It did not meet {', '.join(gap)}, as others here did: its {BEST_KNOWN} may be too weak."
            more = (Flag(some, why),)
        entries = dict(line.entries)
        if more and "best" in entries:
            best = entries["best"]
            entries["best"] = replace(best, figure=best.figure.flagged("fewer attacks", True))
        marked.append(replace(line, entries=entries, flags=(*more, *line.flags)))
    return marked


def _with_ties(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with letters of tie groups: those of the set of prompts that most of them have.

    Compared are the prompts under the best known prompt attack, or, where nothing was attacked, without an
    attack.
    """
    headline = BEST if any(BEST in line.outcomes for line in lines) else PLAIN
    same: dict[str, dict[str, list[bool | None]]] = defaultdict(dict)
    known = {text: outcome for outcome, text in _OUTCOMES.items()}
    for line in lines:
        if headline in line.outcomes and line.role in ("", "given"):
            same[line.prompts][line.key] = [known[text] for text in line.outcomes[headline]]
    alike = max(
        same.values(), key=len, default={}
    )  # letters of two sets of prompts would look compared
    found = tie_groups(alike) if 1 < len(alike) <= MOST else {}
    return [
        replace(line, entries={**line.entries, TIES: Entry(Figure(word=found[line.key]))})
        if line.key in found
        else line
        for line in lines
    ]


def _base(groups: Iterable[Group], kept: Kept) -> Base:
    """Return what retain and benign tasks say of the unchanged models."""
    return {
        (g.first.cell.model, g.first.cell.dtype): kept.get(model_key(g.first), ())
        for g in groups
        if g.first.cell.method.name == "none"
    }


def _erasing(records: Iterable[Record]) -> Iterator[tuple[str, Figure]]:
    """Yield what the erasure took; a record that only read it from the cache says the same."""
    said = [r.erasure for r in records if r.erasure]
    for key in ("seconds", "bytes"):
        if values := [value for each in said if (value := number(each.get(key))) is not None]:
            yield key, Figure(max(values), digits=1)


def _reference(lines: Iterable[Line], key: str) -> float | None:
    values = [
        e.figure.value
        for line in lines
        if line.role == "reference" and (e := line.entries.get(key)) and e.figure.value is not None
    ]
    return fmean(values) if values else None


def _is_rate(f: Figure) -> bool:
    return f.value is None or (
        f.low is not None and f.high is not None and 0 <= f.low <= f.high <= 1
    )


def as_json(tab: Tab) -> dict[str, Any]:
    """Return a tab as the page's script reads it."""
    return {
        "key": tab.key,
        "title": tab.title,
        "columns": [
            {
                "key": c.key,
                "title": c.title,
                "about": c.about,
                "kind": c.kind,
                "reference": c.reference,
            }
            for c in tab.columns
        ],
        "lines": [
            {
                "key": line.key,
                "names": dict(line.names),
                "entries": {key: _entry_json(e) for key, e in line.entries.items()},
                "outcomes": dict(line.outcomes),
                "prompts": line.prompts,
                "flags": [[f.short, f.text] for f in line.flags],
                "role": line.role,
            }
            for line in tab.lines
        ],
        "prompts": {key: list(ids) for key, ids in tab.prompts.items()},
        "notes": list(tab.notes),
    }


def _entry_json(e: Entry) -> dict[str, Any]:
    f = e.figure
    marks = "".join(MARKS[flag] for flag in f.flags if flag != "differs")
    said = {"value": f.value, "low": f.low, "high": f.high, "n": f.n, "unscored": f.unscored,
            "attacked": f.attacked, "p": f.p, "word": f.word, "marks": marks, "cell": e.cell,
            "digits": f.digits}  # fmt: skip
    return {key: value for key, value in said.items() if key == "value" or value not in (None, "")}
