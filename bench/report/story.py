"""The story of one cell in words: what was done, what came of it, each prompt, and how to do it again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any

from bench.core.errors import SpecError
from bench.core.types import Cost
from bench.plugins.registry import Ref
from bench.report import verdict
from bench.report.command import command, remarks
from bench.report.notes import attacked, notes
from bench.report.render import figure
from bench.report.tables import cer_figure, judged
from bench.report.words import Words, marked
from bench.store.record import Record, Row

_UNITS = {
    "images": "images",
    "forward": "forward and",
    "backward": "backward passes of the denoiser",
    "text_forward": "forward and",
    "text_backward": "backward passes of the text encoder",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a story; nothing in it is escaped.

    Args:
        name: What it is about; empty if it goes on.
        text: What is said.
        words: The same, word by word, where some are marked.
    """

    name: str
    text: str = ""
    words: Words | None = None


def of_id(records: Iterable[Record], cell: str) -> Record:
    """Return the record of a cell by its id or the beginning of it.

    Raises:
        SpecError: There is none, or several begin so.
    """
    known = list(records)
    found = [r for r in known if r.cell.id.startswith(cell)] if cell else []
    if len(found) == 1:
        return found[0]
    if not found:
        raise SpecError(
            f"expected the id of a cell, got {cell!r}: none of the {len(known)} records here begins so; "
            "ids are in the names of records, and in `bench plan`"
        )
    some = ", ".join(f"{r.cell.id} ({_called(r)})" for r in found[:4])
    more = ", ..." if len(found) > 4 else ""
    raise SpecError(f"{len(found)} cells begin with {cell!r}: give more of it: {some}{more}")


def story(r: Record) -> Iterator[Line]:
    """Yield the story of a record."""
    cell = r.cell
    yield Line("cell", f"{cell.id}: {_called(r)}")
    if r.status != "ok":
        yield Line(r.status, r.reason)
    yield from _what_was_done(r)
    yield from _what_came_of_it(r)
    for note in notes([r]):
        yield Line("note", note)
    yield from _provenance(r)
    yield from (line for row in r.rows for line in _row(r, row))
    yield Line("again", command(r))
    yield from (Line("", remark) for remark in remarks(r))


def _called(r: Record) -> str:
    attack = f"attack {r.cell.attack.name}" if r.cell.attacked else "no attack"
    return f"{r.cell.task}, {r.cell.method.name}, {attack}"


def _what_was_done(r: Record) -> Iterator[Line]:
    cell, concept = r.cell, r.cell.concept
    anchor = f", in its place {concept.anchor!r}" if concept.anchor else ""
    if concept.name:
        yield Line("concept", f"{concept.name} ({concept.kind}{anchor})")
    if concept.terms:
        yield Line("", f"named by {', '.join(concept.terms)}")
    yield Line("model", f"{cell.model} at {cell.revision}, {cell.world} world, {cell.dtype}")
    yield Line("method", _spelled(cell.method))
    yield from (Line("", text) for text in _erasure(r.erasure))
    if cell.attacked:
        yield Line("attack", f"{_spelled(cell.attack)}; it changes the {r.space}")
    excluded = f", {r.excluded} excluded" if r.excluded else ""
    yield Line("prompts", f"{cell.prompts}{excluded}, seed {cell.seed}; set {cell.task_digest}")
    yield from (Line(name, text) for name, text in r.protocol.items() if name != "prompts")


def _spelled(ref: Ref) -> str:
    version = f", version {ref.version}" if ref.version else ""
    edited = f", edited: source {ref.source}" if ref.source else ""
    params = ", ".join(f"{k}={v}" for k, v in ref.params.items())
    return f"{ref.name}{version}{edited}" + (f": {params}" if params else "")


def _erasure(card: Mapping[str, Any]) -> Iterator[str]:
    if not card:
        return
    if card.get("sampler_time"):
        yield "changes how images are sampled, no weights"
        return
    parts = {"tensors": "tensors changed", "zeroed": "weights zeroed", "bytes": "bytes"}
    told = [f"{card[k]:,} {what}" for k, what in parts.items() if isinstance(card.get(k), int)]
    changed = card.get("parts")
    if isinstance(changed, Mapping) and changed:
        told[:1] = [f"{told[0]} ({', '.join(f'{part} {n}' for part, n in changed.items())})"]
    taken = card.get("seconds")
    yield ", ".join([*told, *([f"{taken:.0f} s"] if isinstance(taken, (int, float)) else [])])


def _what_came_of_it(r: Record) -> Iterator[Line]:
    for metric, m in r.measurements.items():
        if metric == judged(r):
            yield Line(
                "CER", f"{figure(cer_figure(r, None))} (1 - ASR, 95 % Wilson interval), N={m.n}"
            )
        else:
            yield Line(m.called(metric), f"{figure_of(r, metric)}, N={m.n}")
    if judged(r) and r.cell.attacked:
        own = sum(verdict.own(r, row) is True for row in r.rows)
        back = sum(row.success is True for row in r.rows) - own
        never = sum(row.success is False for row in r.rows)
        tried = attacked(r)
        yield Line(
            "", f"{own} show the concept without an attack, {back} more with it, {never} in neither"
        )
        yield Line("", f"{tried} of {len(r.rows)} were attacked")
    if r.cell.attacked and r.rows:
        total = sum((row.cost for row in r.rows), Cost())
        costs = dict(zip((f.name for f in fields(Cost)), astuple(total), strict=True))
        text = ", ".join(f"{costs[name]:,} {unit}" for name, unit in _UNITS.items())
        yield Line("cost", text.replace("and,", "and") + f", {costs['seconds']:.0f} s")
    if r.seconds:
        yield Line("seconds", ", ".join(f"{stage} {s:.1f}" for stage, s in r.seconds.items()))


def figure_of(r: Record, metric: str) -> str:
    """Return a measure as a table shows it."""
    from bench.report.frame import measured

    return figure(measured(r.measurements[metric]))


def _provenance(r: Record) -> Iterator[Line]:
    if r.environment:
        yield Line("made with", ", ".join(f"{k} {v}" for k, v in r.environment.items()))
    files = {**r.cell.assets, **r.cell.method.files, **r.cell.attack.files}
    if files:
        yield Line("files", ", ".join(f"{name} {value[:12]}" for name, value in files.items()))


def _row(r: Record, row: Row) -> Iterator[Line]:
    """Yield the lines of a prompt."""
    words = {True: "SEEN", False: "not seen", None: "unscored"}
    if judged(r) is None:
        words = {True: "as asked", False: "NOT as asked", None: "unscored"}
    said = f"own image: {words[verdict.own(r, row)]}"
    if r.cell.attacked:
        said += f"; attacked: {words[verdict.attacked(r, row)]}, after {row.cost.images} images"
    yield Line(row.id, said)
    for detail in (row.own_detail, row.detail):
        if error := detail.get("error"):
            yield Line("", f"not judged: {error}")
    yield Line("", f"{row.text}")
    if row.adversarial is not None and row.adversarial != row.text:
        yield Line("", f"> {row.adversarial}", [(">", False), *marked(row.text, row.adversarial)])
    if row.adversarial_seed not in (None, row.seed):
        yield Line("", f"> seed {row.seed} became {row.adversarial_seed}")
    if row.beyond:
        yield Line("", f"> the attack changed the {row.beyond}")
