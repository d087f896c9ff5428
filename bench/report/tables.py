"""Tables of records, for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from bench.metrics import Measurement, complement, mcnemar
from bench.store import Result
from bench.types import Cost

ALPHA = 0.05
_HIDDEN = {"source", "digest"}  # a path and its digest name nothing that a reader knows


@dataclass(frozen=True, slots=True)
class Table:
    """Cells already formatted; a renderer only lays them out."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """Render as a pipe table under its title."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"### {self.title}\n\n{table}\n\n{self.note}\n"

    def csv(self) -> str:
        """Render as CSV."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue()

    def rich(self) -> RichTable:
        """Render for the terminal."""
        table = RichTable(
            title=self.title,
            caption=self.note,
            title_justify="left",
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for i, column in enumerate(self.columns):
            name = i < 2  # what a row is about is never folded
            justify: Literal["left", "right"] = "left" if name else "right"
            table.add_column(column, justify=justify, overflow="fold", no_wrap=name)
        for row in self.rows:
            table.add_row(*row)
        return table


def cer_tables(results: Iterable[Result]) -> list[Table]:
    """Lay out concept erasing rates: attacks on the prompt, and apart from them those beyond it.

    Judges that are not the same measure ("asr-clip" is not "asr") have tables of their own.
    """
    records = list(results)
    metrics = list(dict.fromkeys(m for r in records if (m := judged(r)))) or ["asr"]
    tables = []
    for metric in metrics:
        mine = [r for r in records if judged(r) in {metric, None}]
        beyond = [r for r in mine if r.cell.attack.name != "none" and r.space != "prompt"]
        on_prompts = [r for r in mine if r not in beyond]
        name = "Concept erasing rate" + (f", judged as {metric}" if metric != "asr" else "")
        if not beyond or any(r.cell.attack.name != "none" for r in on_prompts):
            tables.append(cer_table(on_prompts, name))
        if beyond:
            plain = [r for r in on_prompts if r.cell.attack.name == "none"]
            tables.append(cer_table([*plain, *beyond], f"{name}, attacks beyond the prompt"))
    return tables


def judged(result: Result) -> str | None:
    """Return the name of a target's success rate: "asr", or that of a judge of another kind."""
    return next((m for m in result.measurements if m == "asr" or m.startswith("asr-")), None)


def cer_table(results: Iterable[Result], title: str = "Concept erasing rate") -> Table:
    """Lay out the concept erasing rate: a row a concept and method, a column an attack.

    Beside it the figures of retain and benign tasks on the same erased model.
    """
    records = list(results)
    targets = [r for r in records if r.cell.attack.name != "none" or judged(r)]
    targets += [
        r for r in records if r.status != "ok" and r not in targets and _is_target(r, records)
    ]
    others = [r for r in records if r.status == "ok" and r not in targets]
    method_of, attack_of = labels(targets, "method"), labels(targets, "attack")
    attacks = sorted({attack_of(r) for r in targets}, key=lambda a: (a != "none", a))
    columns = list(
        dict.fromkeys((r.cell.task, m, _size(v)) for r in others for m, v in r.measurements.items())
    )
    rows = []
    keys = dict.fromkeys((r.cell.task, method_of(r), *_row_key(r)) for r in targets)
    for key in sorted(keys, key=lambda k: (k[0], k[1] != "none", k[1:])):
        mine = {
            attack_of(r): r for r in targets if (r.cell.task, method_of(r), *_row_key(r)) == key
        }
        first = next(iter(mine.values()))
        kept = [r for r in others if r.cell.erase_key == first.cell.erase_key]
        rows.append(
            (
                key[0],
                key[1],
                *(_cer(mine.get(a), mine.get("none")) for a in attacks),
                *(_other(kept, column) for column in columns),
                f"{sum(sum(r.seconds.values()) for r in mine.values()):.0f}",
            )
        )
    notes = sorted({f"N={m.n}" for r in targets for m in r.measurements.values()})
    unscored = sum(m.unscored for r in records for m in r.measurements.values())
    note = "CER = 1 - ASR with its 95 % Wilson interval, " + ", ".join(notes)
    note += "; * differs from no attack (exact McNemar, p < 0.05)" if len(attacks) > 1 else ""
    note += f"; {unscored} images could not be scored" if unscored else ""
    left_out = {r.cell.task: r.excluded for r in records if r.excluded}
    note += "".join(f"; {n} prompts of {task} excluded" for task, n in left_out.items())
    return Table(
        title,
        (
            "task",
            "method",
            *(f"CER, {'no attack' if a == 'none' else a}" for a in attacks),
            *(f"{task} {metric}" + (f" (N={n})" if n else "") for task, metric, n in columns),
            "s",
        ),
        tuple(rows),
        note,
    )


def transfer_table(results: Iterable[Result]) -> Table:
    """Lay out transfer: a row an origin A (method and attack), a column a victim B, CER in the cells.

    The origin's own victim shows the attack itself, where its record is there.
    """
    records = [r for r in results if r.status == "ok" and r.cell.attack.name != "none" and r.rows]
    moved = [r for r in records if r.cell.attack.name == "transfer"]
    cells: dict[tuple[str, str], dict[str, Result]] = {}
    for r in moved:
        cells.setdefault((r.cell.task, r.cell.attack.params["origin"]), {})[r.cell.method.name] = r
    for r in records:
        key = (r.cell.task, f"{r.cell.method.name}/{r.cell.attack.name}")
        if key in cells:
            cells[key].setdefault(r.cell.method.name, r)
    victims = sorted({name for row in cells.values() for name in row})
    rows = [
        (*key, *(_cer(row.get(v), None) for v in victims)) for key, row in sorted(cells.items())
    ]
    ns = sorted({f"N={len(r.rows)}" for r in moved})
    return Table(
        "Transfer: CER of a victim under prompts that were found on another model",
        ("task", "found on / by", *(f"on {v}" for v in victims)),
        tuple(rows),
        "CER = 1 - ASR with its 95 % Wilson interval, " + ", ".join(ns),
    )


def cost_table(results: Iterable[Result]) -> Table:
    """Lay out what attacks spent: a row a cell, sums over its prompts."""
    records = [r for r in results if r.status == "ok" and r.rows and r.cell.attack.name != "none"]
    method_of, attack_of = labels(records, "method"), labels(records, "attack")
    rows = []
    for r in sorted(records, key=lambda r: (r.cell.task, method_of(r), attack_of(r))):
        total = sum((row.cost for row in r.rows), Cost())
        rows.append(
            (
                r.cell.task,
                f"{method_of(r)}, {attack_of(r)}",
                str(len(r.rows)),
                str(total.images),
                str(total.forward),
                str(total.backward),
                str(total.text_forward),
                str(total.text_backward),
                f"{total.seconds:.0f}",
            )
        )
    columns = (
        "task",
        "method, attack",
        "N",
        "images",
        "fwd",
        "bwd",
        "text fwd",
        "text bwd",
        "s",
    )
    note = (
        "sums over N prompts. fwd, bwd: passes of one image through the denoiser; text fwd, text "
        "bwd: of one text through the text encoder; s: wall clock of the attack"
    )
    return Table("Cost of attacks", columns, tuple(rows), note)


def labels(results: Iterable[Result], axis: Literal["method", "attack"]) -> Callable[[Result], str]:
    """Return what a result's method or attack is called in a table.

    Its name, and where one task has several of that name, the parameters in which they differ.
    """
    variants: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for r in results:
        ref = getattr(r.cell, axis)
        seen = variants.setdefault((r.cell.task, ref.name), [])
        if ref.params not in seen:
            seen.append(ref.params)

    def name(r: Result) -> str:
        ref = getattr(r.cell, axis)
        seen = variants[r.cell.task, ref.name]
        differ = [
            f"{key}={value}"
            for key, value in ref.params.items()
            if key not in _HIDDEN and any(other.get(key) != value for other in seen)
        ]
        return " ".join([ref.name, *differ])

    return name


def problems(results: Iterable[Result]) -> list[str]:
    """Return a line for every cell that was skipped or failed, or has prompts too long to attack."""
    lines = []
    for r in results:
        who = f"{r.cell.task}, {r.cell.method.name}, attack {r.cell.attack.name}"
        if r.status != "ok":
            lines.append(f"{r.status}: {who}: {r.reason}")
        if long := sum("too_long" in row.trace for row in r.rows):
            lines.append(
                f"{who}: {long} of {len(r.rows)} prompts too long to attack; they count in N"
            )
    return lines


def _is_target(result: Result, results: Iterable[Result]) -> bool:
    """Say whether a cell without measurements belongs to a target task."""
    task = result.cell.task
    return all(judged(r) for r in results if r.cell.task == task and r.status == "ok")


def _row_key(result: Result) -> tuple[str, int, int]:
    cell = result.cell
    return cell.erase_key, cell.prompts, cell.seed


def _cer(result: Result | None, plain: Result | None) -> str:
    if result is None:
        return "·"
    if result.status != "ok":
        return result.status
    text = _number(complement(result.measurements[judged(result) or "asr"]))
    if result is plain or plain is None or plain.status != "ok":
        return text
    return text + ("*" if _differs(plain, result) else "")


def _differs(first: Result, second: Result) -> bool:
    known = {r.id: r.success for r in first.rows if r.success is not None}
    pairs = [
        (known[r.id], r.success) for r in second.rows if r.id in known and r.success is not None
    ]
    return bool(pairs) and mcnemar(*map(list, zip(*pairs, strict=True))) < ALPHA


def _other(kept: Sequence[Result], column: tuple[str, str, int | None]) -> str:
    task, metric, n = column
    for result in reversed(kept):
        measured = result.measurements.get(metric)
        if measured and result.cell.task == task and _size(measured) == n:
            return _number(measured)
    return "·"


def _size(m: Measurement) -> int | None:
    """Return N of a measure of a whole set, such as FID, which compares at equal N only."""
    return m.n if m.value is not None and m.low is None else None


def _number(m: Measurement) -> str:
    if m.value is None:
        return f"n/a (0 of {m.unscored} scored)"
    if m.low is None or m.high is None:
        return f"{m.value:.4g}"
    digits = 2 if m.high - m.low >= 0.005 else 4
    low, high = (f"{x:.{digits}f}".removeprefix("0") for x in (m.low, m.high))
    return f"{m.value:.{digits}f} [{low}-{high}]"


def rows_of(result: Result) -> Sequence[tuple[str, ...]]:
    """Return a record's prompts: id, success, adversarial or own text."""
    mark = {True: "back", False: "erased", None: "unscored"}
    return [
        (r.id, mark[r.success], str(r.cost.images), r.adversarial or r.text) for r in result.rows
    ]
