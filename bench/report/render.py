"""Tables laid out for a terminal, Markdown, LaTeX, CSV and JSON; hostile text is made safe for each."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, zip_longest
from operator import itemgetter
from textwrap import wrap

from rich.cells import cell_len

from bench.report import text
from bench.report.frame import MARKS, Figure, Flag, Line, Table

NOTHING = "·"
_CSV = ("column", "value", "low", "high", "n", "unscored", "attacked", "detections", "p", "status",
        "flags")  # fmt: skip
_FURTHER = ("published", "difference", "p_holm", "tie")
"""Columns of a CSV file that are there only if a figure has something to say in them."""
_MOST_COLUMNS = 8
"""A table of more columns is printed as several below each other, where groups of columns can be parted."""


def terminal(table: Table, width: int = 80) -> list[str]:
    """Return the lines of a table for a terminal, none wider than ``width`` where that can be.

    Columns that do not fit beside each other: first the first name becomes a heading above its lines, then
    the columns are split into blocks below each other, each with the names. Nothing is cut.
    """
    table = unfolded(table)
    block = _Block(
        [text.plain(name) for name in table.names],
        [text.plain(name) for name in table.columns],
        [[text.plain(name) or NOTHING for name in line.names] for line in table.lines],
        [_shown(table, line) for line in table.lines],
        [text.plain(name) for name in table.over],
    )
    below = [table.legend, *table.notes]
    wrapped = [part for line in below if line for part in _wrapped(text.plain(line), width)]
    return [*_wrapped(text.plain(table.caption), width), "", *block.fitted(width), "", *wrapped]


def markdown(table: Table) -> str:
    """Return a pipe table under its title."""
    table = unfolded(table)
    parts = map(_pipes, side_by_side(table))
    below = [text.markdown(line) for line in (table.legend, *table.notes) if line]
    return "\n\n".join([f"### {text.markdown(table.caption)}", *parts, *below]) + "\n"


def _pipes(table: Table) -> str:
    heads = map(" ".join, zip(table.over or [""] * len(table.columns), table.columns, strict=True))
    header = [text.markdown(name.strip()) for name in (*table.names, *heads)]
    rows = [
        [text.markdown(name) or NOTHING for name in line.names] + _shown(table, line)
        for line in table.lines
    ]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex(table: Table) -> str:
    """Return a ``table`` environment for pdflatex, with its caption above and how to read it below.

    It needs the packages booktabs and multirow. Wide tables are set as several below each other.
    """
    table = unfolded(table)
    tabulars = "\n\n\\medskip\n".join(map(_tabular, side_by_side(table)))
    below = r" \par ".join(text.latex(line) for line in (table.legend, *table.notes) if line)
    number = "" if table.number is None else f"% Table {table.number} of the paper\n"
    return (
        f"{number}% \\usepackage{{booktabs,multirow}}\n\\begin{{table}}\n\\centering\n\\small\n"
        f"\\caption{{{text.latex(table.title)}}}\n\\smallskip\n{tabulars}\n\n"
        f"\\begin{{minipage}}{{\\linewidth}}\\footnotesize\n{below}\n\\end{{minipage}}\n\\end{{table}}\n"
    )


def _tabular(table: Table) -> str:
    from pandas import DataFrame, MultiIndex  # slow to import

    def cell(name: str) -> str:
        indent = r"\quad " if name.startswith("  ") else ""
        return indent + text.latex(name.strip())

    rows = [[*map(cell, line.names), *map(cell, _shown(table, line))] for line in table.lines]
    heads = [*map(cell, table.names), *map(cell, table.columns)]
    above = [*("" for _ in table.names), *map(cell, table.over)]
    columns = MultiIndex.from_arrays([above, heads]) if table.over else heads
    styler = DataFrame(rows, columns=columns, dtype=object).style.hide(axis="index")
    form = "l" * len(table.names) + "r" * len(table.columns)
    return str(styler.to_latex(hrules=True, column_format=form, multicol_align="c")).strip()


def csv_table(table: Table) -> str:
    """Return a line for each figure: what it is about, then its numbers, each in a column of its own.

    Text that a spreadsheet would take for a formula (it begins with ``=``, ``+``, ``-`` or ``@``) begins
    with ``'``.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    known = [_numbers(f) for line in table.lines for _, f in _columns(table, line)]
    further = [name for name in _FURTHER if any(n[name] not in {None, ""} for n in known)]
    writer.writerow([*map(text.csv_cell, table.names), *_CSV, *further])
    for line in table.lines:
        for column, f in _columns(table, line):
            names = map(text.csv_cell, (*line.names, column))
            numbers = _numbers(f)
            exact = (_exact(numbers[name]) for name in (*_CSV[1:], *further))
            writer.writerow([*names, *exact])
    return buffer.getvalue()


def json_table(table: Table) -> dict[str, object]:
    """Return a table as plain values: nothing is rounded, and what is not known is null.

    A figure's status is "ok", "missing", or the word that stands for it, such as "failed".
    """
    lines = [
        {
            "names": dict(zip(table.names, line.names, strict=True)),
            "figures": [
                {"column": column} | _numbers(f) | {"flags": list(f.flags)}
                for column, f in _columns(table, line)
            ],
        }
        for line in table.lines
    ]
    return {
        "number": table.number,
        "title": table.title,
        "names": list(table.names),
        "columns": _heads(table),
        "lines": lines,
        "legend": table.legend,
        "notes": list(table.notes),
    }


def unfolded(table: Table) -> Table:
    """Return a table of published numbers as people read it: each line, and below it what stands beside it.

    That is, where a line has it: the 95 % interval, N where it is not the same everywhere, what the paper
    says, and the difference from it. Other tables are returned as they are.
    """
    if not _has_published(table):
        return table
    known = {f.n for line in table.lines for f in line.figures if f and f.n is not None}
    beside = [each for each in _BESIDE if each[0] != "N" or len(known) > 1]
    lines: list[Line] = []
    group = ""
    for line in table.lines:
        *first, last = line.names
        names = (*(" " if name in {"", group} else name for name in first), last or " ")
        group = first[0] if first else ""
        lines.append(replace(line, names=names, figures=tuple(map(_alone, line.figures))))
        for name, said in beside:
            words = [said(f) if f else "" for f in line.figures]
            if any(words):
                below = tuple(Figure(word=word) if word else None for word in words)
                lines.append(Line((*(" " for _ in first), f"  {name}"), below))
    size = f"; N={known.pop()}" if len(known) == 1 else ""
    return replace(table, lines=tuple(lines), legend=table.legend + size)


def side_by_side(table: Table, most: int = _MOST_COLUMNS) -> list[Table]:
    """Return the parts of a wide table that are printed below each other; groups of columns stay whole."""
    starts = [n for n, name in enumerate(table.over) if not n or name != table.over[n - 1]]
    parts: list[Table] = []
    first = 0
    for n, end in enumerate(ends := [*starts[1:], len(table.columns)]):
        if n + 1 == len(ends) or ends[n + 1] - first > most:
            parts.append(
                replace(
                    table,
                    columns=table.columns[first:end],
                    over=table.over[first:end],
                    lines=tuple(replace(x, figures=x.figures[first:end]) for x in table.lines),
                )
            )
            first = end
    return parts


def _shown(table: Table, line: Line) -> list[str]:
    """Return the figures of a line for people; of a heading as many blanks."""
    return [figure(f, compact=table.compact) for f in line.figures] or [""] * len(table.columns)


def figure(f: Figure | None, *, compact: bool = False) -> str:
    """Return a figure for people: ``0.82 [.69-.90]*``."""
    if f is None:
        return NOTHING
    marks = _marks(flag for flag in f.flags if flag != "outside" or f.difference is None)
    marks += f" {f.tie}" if f.tie else ""
    if f.word:
        return f.word
    if f.value is None:
        return NOTHING if f.missing else f"n/a (0 of {f.unscored} scored)"
    if compact and f.low is not None:
        return text.fixed(f.value, 2).removeprefix("0") + marks
    if f.low is not None and f.high is not None:
        form = _signed if f.signed else _interval
        return form(f.value, f.low, f.high) + marks
    second = f" ({f.detections})" if f.detections is not None else ""
    return _bare(f.value, f.digits) + second + marks


def _interval(value: float, low: float, high: float) -> str:
    return f"{text.fixed(value, _digits(low, high))} [{_ends(low, high)}]"


def _signed(value: float, low: float, high: float) -> str:
    said, *ends = (
        f"{'' if (x := text.fixed(v, 2))[0] == '-' else '+'}{x}" for v in (value, low, high)
    )
    return f"{said} [{', '.join(end.replace('0.', '.', 1) for end in ends)}]"


def _digits(low: float, high: float) -> int:
    return 2 if high - low >= 0.005 else 4


def _ends(low: float, high: float) -> str:
    return "-".join(text.fixed(x, _digits(low, high)).removeprefix("0") for x in (low, high))


def _marks(flags: Iterable[Flag]) -> str:
    return "".join(MARKS[flag] for flag in flags)


def _alone(f: Figure | None) -> Figure | None:
    """Return a figure that is shown without its interval."""
    if f is None or f.value is None or f.low is None or f.high is None:
        return f
    return replace(f, low=None, high=None, digits=_digits(f.low, f.high))


def _difference(f: Figure) -> str:
    if f.difference is None:
        return ""
    whole = isinstance(f.difference, int)
    text = f"{f.difference:+d}" if whole else f"{round(f.difference, 2) + 0:+.2f}"  # no -0.00
    return text + _marks(flag for flag in f.flags if flag == "outside")


_BESIDE: tuple[tuple[str, Callable[[Figure], str]], ...] = (
    ("95 %", lambda f: "" if f.low is None or f.high is None else _ends(f.low, f.high)),
    ("N", lambda f: "" if f.n is None else str(f.n)),
    ("paper", lambda f: "" if f.published is None else _bare(f.published, 2)),
    ("difference", _difference),
)
"""What stands below a line of figures, as far as they have it."""


def _bare(value: float, digits: int | None) -> str:
    if isinstance(value, int):
        return str(value)
    return f"{value:#.4g}".removesuffix(".") if digits is None else text.fixed(value, digits)


def _heads(table: Table) -> list[str]:
    """Return what each column is called, with what stands above it."""
    above = table.over or [""] * len(table.columns)
    return [f"{over} {name}".strip() for over, name in zip(above, table.columns, strict=True)]


def _columns(table: Table, line: Line) -> Iterable[tuple[str, Figure]]:
    """Yield the figures of a line, each with what its column is called; of a heading none."""
    if line.figures:
        pairs = zip(_heads(table), line.figures, strict=True)
        yield from ((column, f) for column, f in pairs if f is not None)


def _numbers(f: Figure) -> dict[str, object]:
    """Return what a figure says, by the name of its column in a CSV file."""
    return {
        "value": f.value,
        "low": f.low,
        "high": f.high,
        "n": f.n,
        "unscored": None if f.n is None else f.unscored,
        "attacked": f.attacked,
        "detections": f.detections,
        "p": f.p,
        "status": f.word or ("missing" if f.missing else "ok"),
        "flags": ";".join(f.flags),
        "published": f.published,
        "difference": f.difference,
        "p_holm": f.p_holm,
        "tie": f.tie,
    }


def _exact(value: object) -> object:
    return f"{value:.12g}" if isinstance(value, float) else value


def _has_published(table: Table) -> bool:
    return any(f and f.published is not None for line in table.lines for f in line.figures)


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
    over: Sequence[str] = ()

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
            ", ".join(
                f"{name} {cell}"
                for name, cell in zip(self.names, row, strict=True)
                if cell != NOTHING
            )
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
            for end in self._breaks(start):
                block = self._lines(layout, range(start, end))
                if _widest(block) <= width:
                    break
            lines += [*([""] if lines else []), *block]
            start = end
        return lines

    def _breaks(self, start: int) -> list[int]:
        """Return where a block may end, the best first: the longest, but between groups of columns."""
        ends = range(len(self.columns), start, -1)
        between = [n for n in ends if self.over[n - 1 : n] != self.over[n : n + 1] or not self.over]
        return [*between, *(n for n in ends if n not in between)]

    def _above(self, widths: list[int], names: int, gap: int, columns: range) -> list[str]:
        """Return the line with what stands above the columns, and make columns wide enough for it."""
        if not self.over:
            return []
        parts = [" " * (sum(widths[:names]) + gap * max(names - 1, 0))] if names else []
        for name, group in groupby(columns, key=lambda c: self.over[c]):
            places = [names + c - columns.start for c in group]
            room = sum(widths[c] for c in places) + gap * (len(places) - 1)
            widths[places[-1]] += max(0, cell_len(name) - room)
            room = max(room, cell_len(name))
            left = (room - cell_len(name)) // 2
            parts.append(" " * left + name + " " * (room - cell_len(name) - left))
        return [(" " + (" " * gap).join(parts)).rstrip()]

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

        above = self._above(widths, len(names), layout.gap, columns)

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
        return [*above, *top, rule, *(self._under_headings(body) if layout.headings else body)]

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
