"""The tables of the paper that this benchmark follows, filled from records.

Their layouts and published numbers are data: ``results/paper``. A table of another world than the paper's
has stand-ins in its places (the emoji world's "nudity" for the paper's, a Fréchet distance for FID).
Published numbers then stand beside them as a reminder, and no difference is shown unless it is asked for:
it would compare two models, two sets of prompts and two judges at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from bench.core.errors import BenchError, SpecError
from bench.core.paths import ROOT
from bench.core.types import World
from bench.plugins.registry import Kind, Ref, resolved
from bench.report.axes import labels
from bench.report.corrected import AS_SEEN, Judges
from bench.report.frame import Figure, Line, Table, measured
from bench.report.judging import found_labels, hits
from bench.report.notes import notes
from bench.report.tables import cer_figure
from bench.sources.catalog import model_info
from bench.store.record import Record

PAPER = ROOT / "results" / "paper"
TABLES = range(1, 9)
_LEGENDS = {
    "cer": "* differs from no attack (exact McNemar, p < 0.05)",
    "label": "detections of a label, or images that show it where the judge counts no detections; a label "
    "that no record here shows is a dot, for no record says whether its judge looks for it",
    "fid": "FID is compared at an equal number of images only",
    "frechet": "the Fréchet distance is that of the emoji world's own features, no FID",
}


@dataclass(frozen=True, slots=True)
class Place:
    """What fills one place of a table.

    Args:
        task: Of its record.
        method: Name of the method.
        attack: Name of the attack.
        concept: What was erased; empty if any will do.
        measure: "cer", "label", or the name of a measurement.
        label: Whose hits count, "total" for those of all rows.
        params: Parameters of the method that are not its own defaults.
        size: The number of images of the published figure, where another number would not compare.
    """

    task: str
    method: str
    measure: str
    attack: str = "none"
    concept: str = ""
    label: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    size: int = 0

    def fits(self, r: Record) -> bool:
        """Whether a record could fill it."""
        cell = r.cell
        return (
            (cell.task, cell.method.name, cell.attack.name) == (self.task, self.method, self.attack)
            and self.concept in {"", cell.concept.name}
            and all(cell.method.params.get(key) == value for key, value in self.params.items())
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a layout; a heading has no places."""

    names: tuple[str, ...]
    places: tuple[Place, ...] = ()
    published: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """One table of the paper, for one world."""

    number: int
    caption: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    over: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The paper, and the model that its numbers are of."""

    title: str
    authors: str
    arxiv: str
    url: str
    model: str
    base: str


@cache
def source() -> Source:
    """Return which paper it is."""
    return TypeAdapter(Source).validate_python(_toml("source"))


def layout(number: int, world: World) -> Layout:
    """Return a table's layout, in another world with that world's stand-ins.

    Raises:
        SpecError: The paper has no such table.
    """
    if number not in TABLES:
        raise SpecError(f"expected a table from {TABLES[0]} to {TABLES[-1]}, got {number}")
    raw = _toml(f"table-{number}")
    stand_in = raw.get(world, {})
    known = raw | stand_in | {"cell": raw["cell"] | stand_in.get("cell", {})}
    names, columns = tuple(known["names"]), known["columns"]
    over = tuple(column.get("over", "") for column in columns)
    other = "rows" not in stand_in and known["cell"].get("measure") != raw["cell"].get("measure")
    return Layout(
        number,
        known["caption"],
        names,
        tuple(column["head"] for column in columns),
        over if any(over) else (),
        tuple(_row(row, known["cell"], columns, published=not other) for row in known["rows"]),
        tuple(known.get("notes", ())),
    )


def paper_tables(
    records: Iterable[Record],
    numbers: Collection[int] = (),
    *,
    compare: bool = False,
    seed: int | None = None,
    judges: Judges = AS_SEEN,
) -> list[Table]:
    """Lay out the paper's tables, once for each model and type of drawing on record.

    Args:
        records: Those of one seed are shown.
        numbers: Which tables; all if none is named.
        compare: Show differences from the published numbers also where the model is not the paper's.
        seed: Of the records; by default the lowest that there is.
        judges: What rates are corrected for.

    Raises:
        SpecError: The paper has no such table, or there are no records of this seed.
    """
    models: dict[tuple[bool, World, str, str], list[Record]] = {}
    for r in records:
        place = (r.cell.world != "photo", r.cell.world, r.cell.model, r.cell.dtype)
        models.setdefault(place, []).append(r)
    chosen = {key: _of_seed(some, seed) for key, some in sorted(models.items())}
    if not any(chosen.values()):
        raise SpecError(f"there is no record of seed {seed}" if models else "there are no records")
    return [
        _Filled(
            layout(number, some[0].cell.world), some, models[key], judges, compare=compare
        ).table()
        for key, some in chosen.items()
        if some
        for number in sorted(numbers) or TABLES
    ]


class _Filled:
    """One table for the records of one model and one seed."""

    def __init__(
        self,
        form: Layout,
        records: Sequence[Record],
        all_seeds: Sequence[Record],
        judges: Judges,
        *,
        compare: bool,
    ) -> None:
        self.form, self.records, self.all_seeds = form, records, all_seeds
        self.judges = judges
        cell = records[0].cell
        self.own = cell.world == "photo" and cell.model == source().model
        self.compare = compare or self.own
        self.labels = tuple(dict.fromkeys(p.label for row in form.rows for p in row.places))
        self.used: dict[str, Record] = {}
        self.beside: dict[str, Record] = {}

    def table(self) -> Table:
        """Return the table with its caption and notes."""
        form = self.form
        published = any(n is not None for row in form.rows for n in row.published)
        lines = tuple(
            Line(row.names, tuple(map(self._figure, row.places, row.published)))
            for row in form.rows
        )
        figures = [f for line in lines for f in line.figures if f]
        return Table(
            self._title(published=published),
            form.names,
            form.columns,
            lines,
            self._legend(figures, published=published),
            (
                *self._notes(figures),
                *(form.notes if published else ()),
                *notes(self.used.values()),
            ),
            over=form.over,
            number=form.number,
        )

    def _figure(self, place: Place, published: float | None) -> Figure:
        record = self._record(place)
        figure = replace(self._measured(place, record), published=published)
        if record is None:
            return figure
        figure = figure.flagged("other parameters", not _as_released(record, place))
        same = figure.n == place.size or not place.size
        if not self.compare or not same or figure.value is None or published is None:
            return figure
        figure = replace(figure, difference=figure.value - published)
        if figure.low is None or figure.high is None:
            return figure
        return figure.flagged("outside", not figure.low <= published <= figure.high)

    def _measured(self, place: Place, record: Record | None) -> Figure:
        if record is None:
            return Figure()
        if record.status != "ok":
            return Figure(word=record.status)
        if place.measure == "cer":
            plain = self._record(replace(place, attack="none")) if record.cell.attacked else None
            return cer_figure(record, plain, self.judges)
        if place.measure == "label":
            return self._hits(place, record)
        m = record.measurements.get(place.measure)
        return Figure(word="n/a") if m is None else replace(measured(m), digits=2)

    def _hits(self, place: Place, record: Record) -> Figure:
        known = found_labels(r for r in self.all_seeds if r.cell.task == place.task)
        wanted = [label for label in self.labels if label != "total" and label in known]
        counted = wanted if place.label == "total" else [place.label]
        if not set(counted) <= known or not counted:
            return Figure()
        each = [hits(record, label) for label in counted]
        total = sum((f.value or 0) if f.detections is None else f.detections for f in each)
        return replace(each[0], value=int(total), detections=None)

    def _record(self, place: Place) -> Record | None:
        """Return the record that fills a place: the one nearest to what is published and released."""

        def rank(r: Record) -> tuple[bool, bool]:
            return "deviations" in r.protocol, not _as_released(r, place)

        fitting = [r for r in self.records if place.fits(r)]
        if not fitting:
            return None
        best = min(
            fitting, key=lambda r: (*rank(r), -r.cell.prompts, r.cell.concept.name, r.cell.id)
        )
        self.used[best.cell.id] = best
        erased = best.cell.concept
        alike = [r for r in fitting if rank(r) == rank(best) and r.cell.concept == erased]
        self.beside |= {r.cell.id: r for r in alike if r is not best}
        return best

    def _title(self, *, published: bool) -> str:
        cell = self.records[0].cell
        which = f"{cell.model}, {cell.dtype}, seed {cell.seed}"
        if not self.own:
            which += f": a stand-in from the {cell.world} world" if cell.world != "photo" else ""
            which += f"; published numbers are of {source().base}" if published else ""
        return f"{self.form.caption} ({which})"

    def _legend(self, figures: Sequence[Figure], *, published: bool) -> str:
        measures = dict.fromkeys(p.measure for row in self.form.rows for p in row.places)
        said = [self.judges.legend] if "cer" in measures else []
        said += [_LEGENDS[m] for m in measures if m in _LEGENDS]
        if published:
            said.append(f"paper: as published in arXiv {source().arxiv}")
        flags = {flag for f in figures for flag in f.flags}
        if any(f.difference is not None for f in figures):
            said.append("difference: ours minus the paper's")
        elif published and not self.compare:
            said.append("no difference from it, for this is another model (--difference)")
        if "outside" in flags:
            said.append("≠ the published number lies outside our interval")
        if "other parameters" in flags:
            said.append("† the method or attack ran with other parameters than its own")
        return "; ".join(said)

    def _notes(self, figures: Sequence[Figure]) -> Iterable[str]:
        empty = sum(f.missing for f in figures)
        if empty:
            yield f"· no record: {empty} of {len(figures)} places"
        seeds = sorted({r.cell.seed for r in self.all_seeds} - {self.records[0].cell.seed})
        if seeds:
            yield f"also on record: seed {', '.join(map(str, seeds))} (--seed)"
        if others := [r for key, r in self.beside.items() if key not in self.used]:
            both = [*self.used.values(), *others]
            method_of, attack_of = labels(both, "method"), labels(both, "attack")
            told = (
                f"{r.cell.task}, {method_of(r)}, attack {attack_of(r)}, N={r.cell.prompts}, {r.cell.id}"
                for r in others
            )
            yield "records that fit a place beside the one shown: " + "; ".join(told)


def _of_seed(records: Sequence[Record], seed: int | None) -> list[Record]:
    first = min(r.cell.seed for r in records) if seed is None else seed
    return [r for r in records if r.cell.seed == first]


def _as_released(r: Record, place: Place) -> bool:
    """Whether method and attack ran with the parameters that they have of their own, and the place's."""
    cell = r.cell
    pairs: tuple[tuple[Kind, Ref], ...] = (("methods", cell.method), ("attacks", cell.attack))
    own = {
        kind: _defaults(kind, ref.name, cell.concept.kind, cell.world, cell.model)
        for kind, ref in pairs
    }
    return all(
        (known := own[kind]) is None
        or all(
            ref.params.get(key) == value
            for key, value in known.items()
            if key not in ref.files and not (kind == "methods" and key in place.params)
        )
        for kind, ref in pairs
    )


@cache
def _defaults(kind: Kind, name: str, of: Any, world: World, model: str) -> Mapping[str, Any] | None:
    """Return a plug-in's parameters where the user gives none; ``None`` where it is not here."""
    from bench.core.types import Concept

    try:
        given = model_info(model, world).defaults
        return resolved(kind, Ref(name), Concept("", of), world, given).params
    except BenchError:
        return None


def _row(
    raw: Mapping[str, Any],
    cell: Mapping[str, Any],
    columns: Sequence[Mapping[str, Any]],
    *,
    published: bool,
) -> Row:
    head = raw["head"]
    names = (head,) if isinstance(head, str) else tuple(head)
    if raw.keys() == {"head"}:
        return Row(names)
    shown = {"head", "over", "published"}
    places = (
        {
            key: value
            for each in (cell, column, raw)
            for key, value in each.items()
            if key not in shown
        }
        for column in columns
    )
    numbers = raw.get("published") if published else None
    return Row(
        names,
        tuple(map(TypeAdapter(Place).validate_python, places)),
        tuple(numbers) if numbers else (None,) * len(columns),
    )


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((PAPER / f"{name}.toml").read_text(encoding="utf-8"))
