"""What tells records apart: whatever differs among those shown becomes a column of their table."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Literal

from bench.core.digest import digest
from bench.errors import StoreError
from bench.plan.cell import IMAGES
from bench.plugins.registry import Ref
from bench.store.record import Record

ATTACK = frozenset({"attack"})
MODEL = frozenset({"world", "model", "revision", "dtype", "method", "concept", "seed"})
TASK = frozenset({"task", "task_digest", "prompts", "judges", "sources"})
"""The fields of a cell that belong to the attack, to the erased model, and to what is asked of it."""
_TASK_PROTOCOL = {"prompts", "excluded", "judge", "guidance"}
_UNSAID = {"guidance": "own", "excluded": "none"}  # what a protocol says by not saying it
_NOT_FACETS = {"method", "attack", "task", "task_digest", "concept", "assets"}  # told otherwise
_RENAMED = {"prompts": "N", "judges": "judge versions", "sources": "judge sources"}
_ALWAYS = ("world", "model", "dtype", "seed", "N", "train")  # shown if any two records differ in it
_LAST = ("draw", "prediction", "task digest", "record")  # shown if nothing else tells lines apart
_OLDER_FILES = {  # fields of records from before a file was told by its type
    "transfer": ("source", "digest"),
    "external": ("unet", "text_encoder", "unet_digest", "text_encoder_digest"),
}


@dataclass(frozen=True, slots=True)
class Group:
    """Records of one line: equal in everything but what the columns of figures say.

    Args:
        records: At least one.
        facets: What can tell the line from others, by the name of its column.
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
    return [
        Group(tuple(some), _facets(some, columns, key))
        for key, alike in same.items()
        for some in _apart(alike, columns)
    ]


def differing(groups: Sequence[Group], named: Callable[[Group], tuple[str, ...]]) -> list[str]:
    """Return the facets that are shown beside the names of a line.

    Args:
        groups: The lines.
        named: What a line is called without them.
    """
    known = list(dict.fromkeys(name for g in groups for name in g.facets))
    shown: list[str] = []
    for name in sorted(known, key=lambda n: _LAST.index(n) if n in _LAST else -1):
        scopes: dict[Any, set[str]] = defaultdict(set)
        for g in groups:
            if name in g.facets:  # an older record does not say everything
                scopes[_scope(name, g, named(g), shown)].add(g.facets[name])
        if any(len(values) > 1 for values in scopes.values()):
            shown.append(name)
    return shown


def labels(results: Iterable[Record], axis: Literal["method", "attack"]) -> Callable[[Record], str]:
    """Return what a result's method or attack is called in a table.

    Its name, and in what it differs from others of that name: parameters, among those for the same kind of
    concept, which decides defaults; version and edited source, among all.
    """
    variants: dict[tuple[str, str, str], dict[str, Ref]] = defaultdict(dict)
    codes: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)

    def key(r: Record) -> tuple[str, str, str]:
        return r.cell.world, r.cell.concept.kind, getattr(r.cell, axis).name

    for r in results:
        ref: Ref = getattr(r.cell, axis)
        variants[key(r)][digest(ref.identity)] = ref
        codes[ref.name][digest(_code(ref))] = _code(ref)

    def label(r: Record) -> str:
        ref: Ref = getattr(r.cell, axis)
        code = _unequal(_code(ref), codes[ref.name].values())
        return " ".join([_called(ref), *_differences(ref, list(variants[key(r)].values())), *code])

    return label


def only(records: Sequence[Record]) -> Record | None:
    """Return the record of one place in a table, or ``None`` if there is none.

    Raises:
        StoreError: There are two.
    """
    if len(records) > 1:
        cell = records[0].cell
        raise StoreError(
            f"two records of one cell: {cell.task}, {cell.method.name}, attack {cell.attack.name} "
            f"({records[0].cell.id}, {records[1].cell.id}); expected one: keep the other elsewhere"
        )
    return records[0] if records else None


def model_key(r: Record) -> tuple[str, str, str]:
    """Records with one key show one erased model, drawn alike."""
    return r.cell.world, r.cell.erase_key, r.cell.dtype


def order(texts: Iterable[str]) -> tuple[tuple[bool, float, str], ...]:
    """Return a key that sorts numbers by value, and what nothing was done to before the rest."""
    return tuple((text != "none", _number(text), text) for text in texts)


def _number(text: str) -> float:
    return float(text) if text.isdecimal() and len(text) < 20 else float("inf")


def _identity(r: Record, columns: frozenset[str]) -> str:
    """Return the address of a record's line: all of its cell but the columns' share."""
    cell = r.cell
    values = asdict(cell) | {"method": cell.method.identity, "attack": cell.attack.identity}
    left_out = {"assets", *columns}  # an attack's assets are no part of the line
    return digest({name: value for name, value in values.items() if name not in left_out})


def _apart(alike: Sequence[Record], columns: frozenset[str]) -> list[list[Record]]:
    """Split records of one line whose protocols or files contradict each other."""
    known: dict[str, set[str]] = defaultdict(set)
    for r in alike:
        for name, value in _said(r, columns).items():
            known[name].add(value)
    torn = sorted(name for name, values in known.items() if len(values) > 1)
    parts: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for r in alike:
        said = _said(r, columns)
        parts[tuple(said.get(name, "") for name in torn)].append(r)
    return list(parts.values())


def _said(r: Record, columns: frozenset[str]) -> dict[str, str]:
    """Return what a record says beside its cell; an older one says less, which contradicts nothing."""
    files = {f"file {name}": value[:8] for name, value in r.cell.assets.items()}
    protocol = _UNSAID | r.protocol if r.protocol else {}
    of_task = {name: value for name, value in protocol.items() if name in _TASK_PROTOCOL} | files
    of_model = {k: v for k, v in protocol.items() if k not in _TASK_PROTOCOL | {"deviations"}}
    return {**({} if columns >= TASK else of_task), **({} if columns >= MODEL else of_model)}


def _facets(records: Sequence[Record], columns: frozenset[str], key: str) -> dict[str, str]:
    cell = records[0].cell
    values = asdict(cell) | {"revision": cell.revision[:8]}
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
    """Return among which lines a facet is compared."""
    if name in _ALWAYS:
        return None
    if name == "revision":
        return g.facets["model"]
    if name in _LAST:
        return names, tuple(g.facets.get(other, "") for other in shown)
    return g.first.cell.task, g.facets["concept"] if name in {"kind", "anchor", "terms"} else ""


def _short(value: Any) -> str:
    """Return a value of a cell as a table shows it."""
    if isinstance(value, dict):
        return ", ".join(f"{k}={str(v)[:8]}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return json.dumps(value)
    return str(value)


def _called(ref: Ref) -> str:
    """Return a plug-in's name; of images that were made elsewhere also what the user calls them."""
    label = ref.params.get("label") if ref.name == IMAGES else ""
    return f"{ref.name} {label}" if label else ref.name


def _differences(ref: Ref, variants: Sequence[Ref]) -> list[str]:
    """Return the parameters in which a plug-in differs from others; files only where nothing else does."""
    values = [_values(v) for v in variants]
    parts = _unequal(_values(ref), values)
    if len({digest(v) for v in values}) < len(variants):
        parts += _unequal(_files(ref), [_files(v) for v in variants])
    return parts


def _unequal(mine: Mapping[str, Any], theirs: Iterable[Mapping[str, Any]]) -> list[str]:
    others = list(theirs)
    return [f"{k}={v}" for k, v in mine.items() if v and any(o.get(k) != v for o in others)]


def _code(ref: Ref) -> dict[str, str]:
    """Return which code a plug-in is."""
    return {"version": str(ref.version or 1), "code": ref.source[:8]}


def _values(ref: Ref) -> dict[str, str]:
    """Return the parameters that mean something to a reader."""
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
    older = _OLDER_FILES.get(ref.name, ())
    return list(dict.fromkeys([*ref.files, *(name for name in older if name in ref.params)]))
