"""How records differ: whatever differs among the records shown becomes a column of their table."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal, TypeVar

from bench.core.digest import digest
from bench.core.errors import StoreError
from bench.plan.cell import IMAGES
from bench.plugins.registry import Ref
from bench.store.record import Record

Key = TypeVar("Key", bound=Hashable)
ATTACK = frozenset({"attack"})
MODEL = frozenset(
    {"world", "model", "revision", "dtype", "method", "concept", "seed", "erase_seed"}
)
TASK = frozenset({"task", "task_digest", "prompts", "judges", "sources"})
"""The fields of a cell that belong to the attack, to the erased model, and to what is asked of it."""
_TASK_PROTOCOL = {"prompts", "excluded", "judge", "guidance"}
_UNSAID = {
    "guidance": "own",
    "excluded": "none",
}  # what a protocol means that does not mention them
_NOT_FACETS = {
    "method",
    "attack",
    "task",
    "task_digest",
    "concept",
    "assets",
}  # shown in another way
_RENAMED = {
    "prompts": "N",
    "judges": "judge versions",
    "sources": "judge sources",
    "erase_seed": "erase seed",
}
_ALWAYS = (
    "world",
    "model",
    "dtype",
    "seed",
    "erase seed",
    "N",
    "train",
)  # shown if any two records differ in it
_OF_JUDGE = ("judge versions", "judge sources")  # compared only under one judge
_OF_JUDGE = ("judge versions", "judge sources")  # shown where lines under one judge differ in it
_LAST = (
    "draw",
    "prediction",
    "task digest",
    "record",
)  # shown only where lines would otherwise look alike
_FILES = {  # parameters that are or name files, in older records without their digests
    "transfer": ("source", "digest", "cell", "found_on"),
    "external": ("unet", "text_encoder", "unet_digest", "text_encoder_digest"),
}


@dataclass(frozen=True, slots=True)
class Group:
    """The records of one line: they differ only in what the columns of figures stand for.

    Args:
        records: At least one.
        facets: In what the line may differ from others, by the name of the column.
    """

    records: tuple[Record, ...]
    facets: Mapping[str, str]

    @property
    def first(self) -> Record:
        """Any of the records, for what they have in common."""
        return self.records[0]


def grouped(records: Iterable[Record], across: Iterable[str]) -> list[Group]:
    """Gather the records that share a line.

    Args:
        records: In any order.
        across: The fields of a cell that columns stand for, as :data:`ATTACK`, :data:`TASK`, :data:`MODEL`.
    """
    columns = frozenset(across)
    same: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        same[_identity(r, columns)].append(r)
    return _with_short_judges(
        Group(tuple(some), _facets(some, columns, key))
        for key, alike in same.items()
        for some in _apart(alike, columns)
    )


def _with_short_judges(groups: Iterable[Group]) -> list[Group]:
    """Leave out the parameters of a judge where no other judge here has its name."""
    known = list(groups)
    said = {judge for g in known if (judge := g.facets.get("judge"))}
    names = Counter(judge.partition(":")[0] for judge in said)
    short = {judge: name for judge in said if names[name := judge.partition(":")[0]] == 1}
    return [
        replace(g, facets={**g.facets, "judge": short[judge]}) if judge in short else g
        for g in known
        for judge in [g.facets.get("judge", "")]
    ]


def differing(groups: Sequence[Group], named: Callable[[Record], tuple[str, ...]]) -> list[str]:
    """Return the facets that are shown beside the names of a line.

    Args:
        groups: The lines.
        named: What a line is called without them.
    """
    known = dict.fromkeys(name for g in groups for name in g.facets)
    shown: list[str] = []
    late = (*_OF_JUDGE, *_LAST)
    for name in sorted(known, key=lambda n: late.index(n) if n in late else -1):
        scopes: dict[Any, set[str]] = defaultdict(set)
        for g in groups:
            if name in g.facets:  # an older record does not say everything
                scopes[_scope(name, g, named(g.first), shown)].add(g.facets[name])
        if any(len(values) > 1 for values in scopes.values()):
            shown.append(name)
    return shown


def labels(records: Iterable[Record], axis: Literal["method", "attack"]) -> Callable[[Record], str]:
    """Return what a record's method or attack is called in a table.

    That is its name and in what it differs from others of that name. Parameters are compared among records
    of one kind of concept, because the kind decides defaults; version and edited source among all. Files
    are said only where two records of one line or column would be called alike otherwise.
    """
    variants: dict[tuple[str, str, str], dict[str, Ref]] = defaultdict(dict)
    codes: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    lines: dict[str, dict[str, Record]] = defaultdict(
        dict
    )  # those with files, by all but the files

    def key(r: Record) -> tuple[str, str, str]:
        return r.cell.world, r.cell.concept.kind, getattr(r.cell, axis).name

    for r in records:
        ref: Ref = getattr(r.cell, axis)
        variants[key(r)][digest(ref.identity)] = ref
        codes[ref.name][digest(_code(ref))] = _code(ref)
        if _file_fields(ref):
            line = digest([_values(ref), _identity(r, frozenset({axis}))])
            lines[line][digest(ref.identity)] = r
    alike = {key(r) for line in lines.values() if len(line) > 1 for r in line.values()}
    known: dict[tuple[tuple[str, str, str], str], str] = {}
    said: dict[int, tuple[Record, str]] = {}  # with the record, so that no other has its id

    def written(r: Record) -> str:
        ref: Ref = getattr(r.cell, axis)
        place = key(r), digest(ref.identity)
        if place not in known:
            code = _unequal(_code(ref), codes[ref.name].values())
            others = list(variants[key(r)].values())
            parts = _unequal(_values(ref), map(_values, others))
            parts += _unequal(_files(ref), map(_files, others)) if key(r) in alike else []
            known[place] = " ".join([_called(ref), *parts, *code])
        return known[place]

    def label(r: Record) -> str:
        if id(r) not in said:
            said[id(r)] = r, written(r)
        return said[id(r)][1]

    return label


def placed(places: Iterable[tuple[Key, Record]]) -> dict[Key, Record]:
    """Return the record of each place in a table.

    Raises:
        StoreError: There are two in one place.
    """
    found: dict[Key, Record] = {}
    for place, record in places:
        if (first := found.setdefault(place, record)) is not record:
            cell = first.cell
            raise StoreError(
                f"two records of one cell: {cell.task}, {cell.method.name}, attack "
                f"{cell.attack.name} ({cell.id}, {record.cell.id}); expected one: keep the other "
                "elsewhere"
            )
    return found


def only(records: Iterable[Record]) -> Record | None:
    """Return the record where there should be one at most.

    Raises:
        StoreError: There are two.
    """
    return placed(("", r) for r in records).get("")


def model_key(r: Record) -> tuple[str, str, str]:
    """Records with one key show one erased model, drawn alike."""
    return r.cell.world, r.cell.erase_key, r.cell.dtype


def order(texts: Iterable[str]) -> tuple[tuple[bool, float, str], ...]:
    """Return a key that sorts numbers by value, and "none" before everything else."""
    return tuple((text != "none", _number(text), text) for text in texts)


def _number(text: str) -> float:
    return float(text) if text.isdecimal() and len(text) < 20 else float("inf")


def _identity(r: Record, columns: frozenset[str]) -> str:
    """Return the address of a record's line: all of its cell but the columns' share."""
    cell = r.cell
    left_out = {"assets", *columns}  # an attack's assets are no part of the line
    return digest({name: value for name, value in cell.values.items() if name not in left_out})


def _apart(alike: Sequence[Record], columns: frozenset[str]) -> Iterable[list[Record]]:
    """Split records of one line whose protocols or files contradict each other."""
    said = [_said(r, columns) for r in alike]
    known = sorted({name for each in said for name in each})
    torn = [name for name in known if len({each[name] for each in said if name in each}) > 1]
    parts: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for r, each in zip(alike, said, strict=True):
        parts[tuple(each.get(name, "") for name in torn)].append(r)
    return parts.values()


def _said(r: Record, columns: frozenset[str]) -> dict[str, str]:
    """Return what a record says beside its cell. What an older one does not say contradicts nothing."""
    files = {f"file {name}": value[:8] for name, value in r.cell.assets.items()}
    protocol = _UNSAID | r.protocol if r.protocol else {}
    of_task = {name: value for name, value in protocol.items() if name in _TASK_PROTOCOL} | files
    of_model = {k: v for k, v in protocol.items() if k not in _TASK_PROTOCOL | {"deviations"}}
    return {**({} if columns >= TASK else of_task), **({} if columns >= MODEL else of_model)}


def _facets(records: Sequence[Record], columns: frozenset[str], key: str) -> dict[str, str]:
    cell = records[0].cell
    values = cell.values | {"revision": cell.revision[:8]}
    if cell.erase_seed is None:
        values["erase_seed"] = "as seed"
    own = {
        _RENAMED.get(name, name): _short(value)
        for name, value in values.items()
        if name not in _NOT_FACETS | columns
    }
    if "concept" not in columns:
        terms = ", ".join(cell.concept.terms)
        own |= {"concept": cell.concept.name, "kind": cell.concept.kind,
                "anchor": cell.concept.anchor, "terms": terms}  # fmt: skip
    said = {name: value for r in records for name, value in _said(r, columns).items()}
    last = {} if "task_digest" in columns else {"task digest": cell.task_digest[:8]}
    return {**own, **said, **last, "record": key[:8]}


def _scope(name: str, g: Group, names: tuple[str, ...], shown: Sequence[str]) -> Any:
    """Return a name of the lines among which a facet is compared."""
    if name in _ALWAYS:
        return None
    if name == "revision":
        return g.facets["model"]
    if name in _LAST:
        return names, tuple(g.facets.get(other, "") for other in shown)
    if name in _OF_JUDGE:
        return g.first.cell.task, g.facets.get("judge") if "judge" in shown else ""
    return g.first.cell.task, g.facets["concept"] if name in {"kind", "anchor", "terms"} else ""


def _short(value: Any) -> str:
    """Return a value of a cell as a table shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{k}={str(v)[:8]}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return json.dumps(value)
    return str(value)


def _called(ref: Ref) -> str:
    """Return a plug-in's name, and for images that were made elsewhere the user's name of them."""
    label = ref.params.get("label") if ref.name == IMAGES else ""
    return f"{ref.name} {label}" if label else ref.name


def _unequal(mine: Mapping[str, Any], theirs: Iterable[Mapping[str, Any]]) -> list[str]:
    others = list(theirs)
    return [f"{k}={v}" for k, v in mine.items() if v and any(o.get(k) != v for o in others)]


def _code(ref: Ref) -> dict[str, str]:
    """Return which code a plug-in is."""
    return {"version": str(ref.version or 1), "code": ref.source[:8]}


def _values(ref: Ref) -> dict[str, str]:
    """Return the parameters that are no files."""
    files = {*_file_fields(ref), *({"label"} if ref.name == IMAGES else ())}
    return {name: _short(value) for name, value in ref.params.items() if name not in files}


def _files(ref: Ref) -> dict[str, str]:
    """Return what names a plug-in's files."""
    return {
        key: f"{PurePath(str(ref.params.get(key, ''))).name} {ref.files.get(key, '')[:8]}".strip()
        for key in _file_fields(ref)
    }


def _file_fields(ref: Ref) -> list[str]:
    """Return the parameters that name a file or its digest."""
    known = _FILES.get(ref.name, ())
    return list(dict.fromkeys([*ref.files, *(name for name in known if name in ref.params)]))
