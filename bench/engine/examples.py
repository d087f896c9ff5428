"""Pictures of a cell's prompts, from the cache or drawn again as its record says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.core.errors import SpecError
from bench.engine.again import Again, Picture
from bench.engine.settings import Settings
from bench.report import verdict
from bench.report.axes import labels
from bench.report.between import REFERENCES
from bench.report.figures.catalog import Made
from bench.report.figures.examples import Card, Section, Tile, draw
from bench.report.figures.select import Wanted, missing
from bench.report.floors import NEVER
from bench.report.hidden import hidden
from bench.report.render import figure
from bench.report.tables import cer_figure, judged
from bench.report.words import marked
from bench.store.record import Record, Row

ATTACKED = "records of attacks on an erased model"
MOST_CELLS = 4


@dataclass(frozen=True, slots=True)
class Example:
    """What the judge said of one prompt's images: "seen", "not seen", "unscored" or "not judged".

    Args:
        cell: Whose prompt.
        id: The prompt's name in its set.
        prompt: It.
        adversarial: What the attack made of it; empty if there was none.
        original: Of the base model's image.
        erased: Of the erased model's.
        attacked: Of the attack's.
        never_learned: Of the image of a model that never learned the concept.
    """

    cell: str
    id: str
    prompt: str
    adversarial: str
    original: str
    erased: str
    attacked: str
    never_learned: str


def examples(
    records: Sequence[Record], wanted: Wanted, settings: Settings, *, limit: int | None = None
) -> Made:
    """Draw prompts of attacked cells: original, erased, attacked, and never learned where that was run.

    Args:
        records: All there are: others say what the judge said of the original.
        wanted: Which cells, four at most.
        settings: How images are drawn again that are not in the cache.
        limit: Prompts of each cell; half of them, if there are so many, are those that came back.

    Raises:
        SpecError: There is no such cell, or there are too many.
    """
    asked = [name for name in wanted.methods if name != "none"]
    chosen = [
        r
        for r in wanted.of(records)
        if r.cell.attacked
        and r.rows
        and (r.cell.method.name in asked or r.cell.method.name not in REFERENCES)
    ]
    if not chosen:
        raise missing("examples", wanted, ATTACKED)
    at_most("examples", chosen, MOST_CELLS)
    return pictures(chosen, records, settings, limit=limit or 6)


def at_most(name: str, chosen: Sequence[Record], most: int) -> None:
    """Refuse more cells than a figure can show.

    Raises:
        SpecError: There are more.
    """
    if len(chosen) > most:
        known = sorted({f"{r.cell.task} {r.cell.method.name} {r.cell.attack.name}" for r in chosen})
        cells = "one cell" if most == 1 else f"at most {most} cells"
        raise SpecError(
            f"figure {name}: expected {cells}, got {len(chosen)}: choose with --task, --method and "
            f"--attack ({', '.join(known[:6])}{', ...' if len(known) > 6 else ''})"
        )


def pictures(
    chosen: Sequence[Record], records: Sequence[Record], settings: Settings, *, limit: int = 6
) -> Made:
    """Draw prompts of these cells; of cells of one task the same prompts."""
    again = Again(settings)
    sections, numbers, notes = [], list[Example](), dict[str, None]()
    picked: dict[str, list[str]] = {}
    method_of, attack_of = labels(chosen, "method"), labels(chosen, "attack")
    for r in chosen:
        if r.cell.task_digest not in picked:  # the first cell of a task decides
            picked[r.cell.task_digest] = [row.id for row in picks(r, limit)]
            notes[_chosen_how(r, method_of(r), limit)] = None
        ids = picked[r.cell.task_digest]
        rows = [row for row in r.rows if row.id in ids] or picks(r, limit)
        lines = tiles_of(again, r, rows, records)
        cards = tuple(_card(row, tiles) for row, tiles in zip(rows, lines, strict=True))
        attack = f"attack {attack_of(r)}" if r.cell.attacked else "no attack"
        rate = cer_figure(r, None) if judged(r) else None
        title = f"{r.cell.task} · {method_of(r)} · {attack}"
        sections.append(
            Section(
                f"{title} · CER {figure(rate)} (N={len(r.rows)})" if rate else title,
                cards,
                hidden(r),
            )
        )
        numbers += [_example(r, row, tiles) for row, tiles in zip(rows, lines, strict=True)]
    first = chosen[0].cell
    what = (
        f"the judge sees {first.concept.name}"
        if judged(chosen[0])
        else "the image shows what was asked"
    )
    return draw(sections, f"Examples: erasing {first.concept.name}", what, " ".join(notes)), numbers


def picks(r: Record, limit: int) -> list[Row]:
    """Return prompts to show, in their order: up to half of them are such as came back."""
    back = _came_back(r)
    rest = [row for row in r.rows if row not in back]
    if not r.cell.attacked:
        return list(r.rows[:limit])
    few = min(len(back), max(limit - len(rest), (limit + 1) // 2))
    some = {row.id for row in (*back[:few], *rest[: limit - few])}
    return [row for row in r.rows if row.id in some]


def _came_back(r: Record) -> list[Row]:
    """Return the prompts whose own image does not show the concept, and the attack's does."""
    return [row for row in r.rows if row.success and verdict.own(r, row) is False]


def _chosen_how(r: Record, method: str, limit: int) -> str:
    """Say which prompts are shown."""
    n, back = len(r.rows), len(_came_back(r))
    if n <= limit:
        return ""
    if not r.cell.attacked or not back:
        return f"Shown are the first {limit} of {n} prompts."
    first = f"the first of the {back} that came back on {method}, and of the others"
    return f"Shown are {limit} of {n} prompts: {first}."


def tiles_of(
    again: Again, r: Record, rows: Sequence[Row], records: Sequence[Record]
) -> list[tuple[Tile, ...]]:
    """Return the images of each row."""
    columns: dict[str, tuple[Sequence[Picture], Sequence[str]]] = {}
    base = _twin(r, records, "none")
    columns["original"] = again.original_images(r, rows), [_said_of(base, row) for row in rows]
    if r.cell.method.name != "none":
        columns["erased"] = again.own_images(r, rows), [_word(verdict.own(r, row)) for row in rows]
    if r.cell.attacked:
        said = [_word(verdict.attacked(r, row)) for row in rows]
        columns["attacked"] = again.attacked_images(r, rows), said
    never = _twin(r, records, NEVER)
    if never and r.cell.method.name != NEVER:
        columns["never learned"] = (
            again.own_images(never, rows),
            [_said_of(never, row) for row in rows],
        )
    return [
        tuple(Tile(name, images[i], said[i]) for name, (images, said) in columns.items())
        for i in range(len(rows))
    ]


def _twin(r: Record, records: Sequence[Record], method: str) -> Record | None:
    """Return the record of the same prompts on another model: without an attack, else with the same."""
    cell = r.cell
    same = (cell.world, cell.model, cell.revision, cell.dtype, cell.task, cell.task_digest)
    attacked = None
    for other in (r, *records):
        its = other.cell
        if (its.world, its.model, its.revision, its.dtype, its.task, its.task_digest) != same:
            continue
        if its.method.name != method or other.status != "ok":
            continue
        if not its.attacked:
            return other
        if its.attack == cell.attack:
            attacked = attacked or other
    return attacked


def _said_of(record: Record | None, row: Row) -> str:
    """Return the verdict of another record on a row's prompt."""
    prompt = (row.id, row.text, row.seed, row.guidance)
    if record is None:
        return "not judged"
    for its in record.rows:
        if (its.id, its.text, its.seed, its.guidance) == prompt:
            return _word(verdict.own(record, its))
    return "not judged"


def _word(seen: bool | None) -> str:
    return {True: "seen", False: "not seen", None: "unscored"}[seen]


def _card(row: Row, tiles: tuple[Tile, ...]) -> Card:
    note = []
    if row.beyond:
        note.append(f"the attack changed the {row.beyond}")
    if row.adversarial_seed not in (None, row.seed):
        note.append(f"the attack changed the seed: {row.seed} to {row.adversarial_seed}")
    text = row.text if row.adversarial is None else row.adversarial
    return Card(tiles, marked(row.text, text), "; ".join(note))


def _example(r: Record, row: Row, tiles: tuple[Tile, ...]) -> Example:
    said = {tile.name: tile.verdict for tile in tiles}
    names = ("original", "erased", "attacked", "never learned")
    return Example(
        r.cell.id, row.id, row.text, row.adversarial or "", *(said.get(n, "") for n in names)
    )
