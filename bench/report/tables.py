"""Tables of records, for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable

from bench.metrics import Measurement, complement, mcnemar
from bench.store import Result

ALPHA = 0.05


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
            table.add_column(column, justify="left" if i < 2 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def cer_table(results: Iterable[Result]) -> Table:
    """Lay out the concept erasing rate: a row a concept and method, a column an attack.

    Beside it the figures of retain and benign tasks on the same erased model.
    """
    records = list(results)
    targets = [r for r in records if r.status != "ok" or "asr" in r.measurements]
    others = [r for r in records if r.status == "ok" and "asr" not in r.measurements]
    attacks = sorted({r.cell.attack.name for r in targets}, key=lambda a: (a != "none", a))
    columns = list(dict.fromkeys((r.cell.task, m) for r in others for m in r.measurements))
    rows = []
    keys = dict.fromkeys(_row_key(r) for r in targets)
    for key in sorted(keys, key=lambda k: (k[0], k[1] != "none", k[1:])):
        mine = {r.cell.attack.name: r for r in targets if _row_key(r) == key}
        kept = {
            r.cell.task: r for r in others if _model_key(r) == _model_key(next(iter(mine.values())))
        }
        rows.append(
            (
                key[0],
                key[1],
                *(_cer(mine.get(a), mine.get("none")) for a in attacks),
                *(_other(kept.get(task), metric) for task, metric in columns),
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
        "Concept erasing rate",
        (
            "task",
            "method",
            *(f"CER, {'no attack' if a == 'none' else a}" for a in attacks),
            *(f"{task} {metric}" for task, metric in columns),
            "s",
        ),
        tuple(rows),
        note,
    )


def problems(results: Iterable[Result]) -> list[str]:
    """Return a line for every cell that was skipped or failed."""
    return [
        f"{r.status}: {r.cell.task}, {r.cell.method.name}, attack {r.cell.attack.name}: {r.reason}"
        for r in results
        if r.status != "ok"
    ]


def _row_key(result: Result) -> tuple[str, str, str, int, int]:
    cell = result.cell
    return cell.task, cell.method.name, cell.erase_key, cell.prompts, cell.seed


def _model_key(result: Result) -> str:
    return result.cell.erase_key


def _cer(result: Result | None, plain: Result | None) -> str:
    if result is None:
        return "·"
    if result.status != "ok":
        return result.status
    text = _number(complement(result.measurements["asr"]))
    if result is plain or plain is None or plain.status != "ok":
        return text
    return text + ("*" if _differs(plain, result) else "")


def _differs(first: Result, second: Result) -> bool:
    known = {r.id: r.success for r in first.rows if r.success is not None}
    pairs = [
        (known[r.id], r.success) for r in second.rows if r.id in known and r.success is not None
    ]
    return bool(pairs) and mcnemar(*map(list, zip(*pairs, strict=True))) < ALPHA


def _other(result: Result | None, metric: str) -> str:
    if result is None or metric not in result.measurements:
        return "·"
    return _number(result.measurements[metric])


def _number(m: Measurement) -> str:
    if m.value is None:
        return f"n/a (0 of {m.unscored} scored)"
    interval = f" [{_short(m.low)}-{_short(m.high)}]" if m.low is not None else ""
    return f"{m.value:.2f}{interval}"


def _short(x: float | None) -> str:
    return f"{x:.2f}".replace("0.", ".") if x is not None else ""


def rows_of(result: Result) -> Sequence[tuple[str, ...]]:
    """Return a record's prompts: id, success, adversarial or own text."""
    mark = {True: "back", False: "erased", None: "unscored"}
    return [
        (r.id, mark[r.success], str(r.cost.images), r.adversarial or r.text) for r in result.rows
    ]
