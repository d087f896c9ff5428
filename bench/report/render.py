"""Tables laid out for a terminal, for Markdown and as CSV; each makes hostile text safe for its medium."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from textwrap import wrap

from rich.cells import cell_len

from bench.report import text
from bench.report.frame import MARKS, Figure, Line, Table

NOTHING = "·"
_CSV = ("column", "value", "low", "high", "n", "unscored", "attacked", "detections", "p", "status",
        "flags")  # fmt: skip


def terminal(table: Table, width: int = 80) -> list[str]:
    """Return the lines of a table for a terminal, none wider than ``width`` where that can be.

    What does not fit beside each other is first put under headings, by the first name, and then into
    blocks below each other, which repeat the names. Nothing is cut.
    """
    block = _Block(
        [text.plain(name) for name in table.names],
        [text.plain(name) for name in table.columns],
        [[text.plain(name) or NOTHING for name in line.names] for line in table.lines],
        [[figure(f, compact=table.compact) for f in line.figures] for line in table.lines],
    )
    below = [table.legend, *table.notes]
    wrapped = [part for line in below if line for part in _wrapped(text.plain(line), width)]
    return [*_wrapped(text.plain(table.title), width), "", *block.fitted(width), "", *wrapped]


def markdown(table: Table) -> str:
    """Return a pipe table under its title."""
    header = [text.markdown(name) for name in (*table.names, *table.columns)]
    rows = [
        [text.markdown(name) or NOTHING for name in line.names]
        + [figure(f, compact=table.compact) for f in line.figures]
        for line in table.lines
    ]
    lines = [header, ["---"] * len(header), *rows]
    pipes = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    below = "\n\n".join(text.markdown(line) for line in (table.legend, *table.notes) if line)
    return f"### {text.markdown(table.title)}\n\n{pipes}\n\n{below}\n"


def csv_table(table: Table) -> str:
    """Return a line for each figure: what it is about, then its numbers, each in a column of its own.

    Text that a spreadsheet would take for a formula (it begins with ``=``, ``+``, ``-`` or ``@``) begins
    with ``'``.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*map(text.csv_cell, table.names), *_CSV])
    for line in table.lines:
        writer.writerows(_records(table, line))
    return buffer.getvalue()


def figure(f: Figure | None, *, compact: bool = False) -> str:
    """Return a figure for people: ``0.82 [.69-.90]*``."""
    if f is None:
        return NOTHING
    marks = "".join(MARKS[flag] for flag in f.flags)
    if f.word:
        return f.word
    if f.value is None:
        return f"n/a (0 of {f.unscored} scored)"
    if compact and f.low is not None:
        return f"{f.value:.2f}".removeprefix("0") + marks
    if f.low is not None and f.high is not None:
        return _interval(f.value, f.low, f.high) + marks
    return _bare(f.value, f.digits) + (f" ({f.detections})" if f.detections is not None else "")


def _interval(value: float, low: float, high: float) -> str:
    digits = 2 if high - low >= 0.005 else 4
    ends = (f"{x:.{digits}f}".removeprefix("0") for x in (low, high))
    return f"{value:.{digits}f} [{'-'.join(ends)}]"


def _bare(value: float, digits: int | None) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:.4g}" if digits is None else f"{value:.{digits}f}"


def _records(table: Table, line: Line) -> Iterable[list[object]]:
    names = [text.csv_cell(name) for name in line.names]
    for column, f in zip(table.columns, line.figures, strict=True):
        if f is not None:
            unscored = None if f.n is None else f.unscored
            numbers = (f.value, f.low, f.high, f.n, unscored, f.attacked, f.detections, f.p)
            exact = [f"{x:.12g}" if isinstance(x, float) else x for x in numbers]
            yield [*names, text.csv_cell(column), *exact, f.word or "ok", ";".join(f.flags)]


class _Block:
    """Text in columns: names on the left, figures on the right."""

    def __init__(
        self,
        names: Sequence[str],
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        figures: Sequence[Sequence[str]],
    ) -> None:
        self.names, self.columns, self.rows, self.figures = names, columns, rows, figures

    def fitted(self, width: int) -> list[str]:
        """Return the lines in the first layout that fits."""
        every = range(len(self.columns))
        headings = len(self.names) > 1
        for under, gap in ((False, 2), (False, 1), (True, 2), (True, 1)):
            lines = self._lines(gap, headings=under and headings, columns=every)
            if _widest(lines) <= width:
                return lines
        return self._blocks(width, headings)

    def _blocks(self, width: int, headings: bool) -> list[str]:
        """Return as many columns beside each other as fit, the rest below, likewise."""
        blocks: list[list[str]] = []
        start = 0
        while start < len(self.columns) or not blocks:
            for end in range(len(self.columns), start, -1):
                block = self._lines(2, headings=headings, columns=range(start, end))
                if _widest(block) <= width or end == start + 1:
                    break
            else:
                block, end = self._lines(2, headings=headings, columns=range(0)), start + 1
            blocks.append(block)
            start = end
        return [line for n, block in enumerate(blocks) for line in ([""] if n else []) + block]

    def _lines(self, gap: int, *, headings: bool, columns: range) -> list[str]:
        names = list(self.names[headings:])
        cells = [[*row[headings:], *(f[c] for c in columns)] for row, f in self._pairs()]
        header = [*names, *(self.columns[c] for c in columns)]
        least = [max([0, *(cell_len(cells[r][c]) for r in range(len(cells)))])
                 for c in range(len(header))]  # fmt: skip
        stacked = [_stacked(title, size) for title, size in zip(header, least, strict=True)]
        widths = [max([size, *map(cell_len, title)])
                  for title, size in zip(stacked, least, strict=True)]  # fmt: skip

        def joined(row: Sequence[str]) -> str:
            padded = (
                _left(cell, size) if c < len(names) else _right(cell, size)
                for c, (cell, size) in enumerate(zip(row, widths, strict=True))
            )
            return (" " + (" " * gap).join(padded)).rstrip()

        rule = " " + "─" * (sum(widths) + gap * (len(widths) - 1))
        top = [joined(level) for level in _levels(stacked)]
        body = self._under_headings(cells, joined) if headings else [joined(row) for row in cells]
        return [*top, rule, *body]

    def _under_headings(
        self, cells: Sequence[Sequence[str]], joined: Callable[[Sequence[str]], str]
    ) -> list[str]:
        pairs = [(row[0], row_cells) for row, row_cells in zip(self.rows, cells, strict=True)]
        lines = []
        for heading, members in groupby(pairs, key=lambda pair: pair[0]):
            lines += [heading, *(joined(row) for _, row in members)]
        return lines

    def _pairs(self) -> Iterable[tuple[Sequence[str], Sequence[str]]]:
        return zip(self.rows, self.figures, strict=True)


def _stacked(title: str, size: int) -> list[str]:
    """Return a header in one line, or in two where that makes its column narrower."""
    words = title.split(" ")
    splits = [[" ".join(words[:n]), " ".join(words[n:])] for n in range(1, len(words))]
    if cell_len(title) <= size or not splits:
        return [title]
    return min(splits, key=lambda parts: max(map(cell_len, parts)))


def _levels(stacked: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the lines of a header, short titles at the bottom."""
    height = max(map(len, stacked))
    padded = [[""] * (height - len(title)) + list(title) for title in stacked]
    return [[title[n] for title in padded] for n in range(height)]


def _left(cell: str, size: int) -> str:
    return cell + " " * (size - cell_len(cell))


def _right(cell: str, size: int) -> str:
    return " " * (size - cell_len(cell)) + cell


def _widest(lines: Iterable[str]) -> int:
    return max(map(cell_len, lines))


def _wrapped(line: str, width: int) -> list[str]:
    return wrap(line, width, break_long_words=False, break_on_hyphens=False)
