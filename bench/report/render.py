"""Tables laid out for a terminal, for Markdown and as CSV; each makes hostile text safe for its medium."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from operator import itemgetter
from textwrap import wrap

from rich.cells import cell_len

from bench.report import text
from bench.report.frame import MARKS, Figure, Line, Table

NOTHING = "·"
_CSV = ("column", "value", "low", "high", "n", "unscored", "attacked", "detections", "p", "status",
        "flags")  # fmt: skip


def terminal(table: Table, width: int = 80) -> list[str]:
    """Return the lines of a table for a terminal, none wider than ``width`` where that can be.

    Columns that do not fit beside each other: first the first name becomes a heading above its lines, then
    the columns are split into blocks below each other, each with the names. Nothing is cut.
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
    second = f" ({f.detections})" if f.detections is not None else ""
    return _bare(f.value, f.digits) + second + marks


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


@dataclass(frozen=True, slots=True)
class _Layout:
    """How wide a block is: the gap between columns, headings above lines, headers in two lines."""

    gap: int
    headings: bool
    stacked: bool


_WIDEST_FIRST = (
    _Layout(2, headings=False, stacked=False),
    _Layout(2, headings=False, stacked=True),
    _Layout(1, headings=False, stacked=True),
    _Layout(2, headings=True, stacked=True),
    _Layout(1, headings=True, stacked=True),
)


@dataclass(frozen=True, slots=True)
class _Block:
    """Text in columns: names on the left, figures on the right."""

    names: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: Sequence[Sequence[str]]

    def fitted(self, width: int) -> list[str]:
        """Return the lines in the first layout that fits."""
        layouts = [each for each in _WIDEST_FIRST if len(self.names) > 1 or not each.headings]
        for layout in layouts:
            lines = self._lines(layout, range(len(self.columns)))
            if _widest(lines) <= width:
                return lines
        blocks = self._blocks(width, replace(layouts[-1], gap=2))
        return blocks if _widest(blocks) <= width else self._tall(width)

    def _tall(self, width: int) -> list[str]:
        """Return each line's names as a heading of their own, its figures below."""
        headings = [
            ", ".join(f"{name} {cell}" for name, cell in zip(self.names, row, strict=True))
            for row in self.rows
        ]
        places = {str(n): _wrapped(heading, width) for n, heading in enumerate(headings)}
        block = replace(self, names=("", ""), rows=[(place, "") for place in places])
        lines = block._blocks(width, _WIDEST_FIRST[-1])
        return [part for line in lines for part in places.get(line, [line])]

    def _blocks(self, width: int, layout: _Layout) -> list[str]:
        """Return as many columns beside each other as fit, the rest below, likewise."""
        lines: list[str] = []
        start = 0
        while start < len(self.columns):
            for end in range(len(self.columns), start, -1):
                block = self._lines(layout, range(start, end))
                if _widest(block) <= width:
                    break
            lines += [*([""] if lines else []), *block]
            start = end
        return lines

    def _lines(self, layout: _Layout, columns: range) -> list[str]:
        names = list(self.names[layout.headings :])
        header = [*names, *(self.columns[c] for c in columns)]
        cells = [
            [*row[layout.headings :], *(figures[c] for c in columns)]
            for row, figures in zip(self.rows, self.figures, strict=True)
        ]
        content = [max((cell_len(row[c]) for row in cells), default=0) for c in range(len(header))]
        least = [0 if layout.stacked else cell_len(title) for title in header]
        titles = [
            _stacked(title, max(sizes))
            for title, *sizes in zip(header, least, content, strict=True)
        ]
        widths = [
            max(size, *map(cell_len, title)) for title, size in zip(titles, content, strict=True)
        ]

        def joined(row: Sequence[str]) -> str:
            fills = (" " * (size - cell_len(cell)) for cell, size in zip(row, widths, strict=True))
            padded = (
                cell + fill if c < len(names) else fill + cell
                for c, (cell, fill) in enumerate(zip(row, fills, strict=True))
            )
            return (" " + (" " * layout.gap).join(padded)).rstrip()

        levels = zip_longest(*map(reversed, titles), fillvalue="")  # short titles at the bottom
        top = [joined(level) for level in reversed(list(levels))]
        rule = " " + "─" * (sum(widths) + layout.gap * (len(widths) - 1))
        body = map(joined, cells)
        return [*top, rule, *(self._under_headings(body) if layout.headings else body)]

    def _under_headings(self, body: Iterable[str]) -> Iterable[str]:
        pairs = zip((row[0] for row in self.rows), body, strict=True)
        for heading, members in groupby(pairs, key=itemgetter(0)):
            yield heading
            yield from (line for _, line in members)


def _stacked(title: str, size: int) -> list[str]:
    """Return a header in one line, or in two where that makes its column narrower."""
    words = title.split(" ")
    splits = [[" ".join(words[:n]), " ".join(words[n:])] for n in range(1, len(words))]
    if cell_len(title) <= size or not splits:
        return [title]
    return min(splits, key=lambda parts: max(map(cell_len, parts)))


def _widest(lines: Iterable[str]) -> int:
    return max(map(cell_len, lines))


def _wrapped(line: str, width: int) -> list[str]:
    return wrap(line, width, break_long_words=False, break_on_hyphens=False)
