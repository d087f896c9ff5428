"""What is printed, and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from textwrap import wrap
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from bench.report.text import plain
from bench.report.text import say as _say_to

out = Console(markup=False, emoji=False, highlight=False)
err = Console(markup=False, emoji=False, highlight=False, stderr=True)
progress = Console(markup=False, emoji=False, highlight=False, stderr=True)
"""Where it is said what goes on; ``--quiet`` silences it."""


class Format(StrEnum):
    """How a table is printed."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"

    @classmethod
    def of(cls, json_: bool, otherwise: Format | None = None) -> Format:
        """Return the format that ``--json`` asks for, or else another."""
        return cls.json if json_ else otherwise or cls.terminal


def say(line: object, to: Console = out, style: str = "") -> None:
    """Print one line; whatever is in it, it stays one line of text."""
    _say_to(line, to, style)


def remark(line: object, *, aside: bool = False) -> None:
    """Print one line beside a result, unless ``--quiet`` was given; ``aside``: not among the result."""
    if not progress.quiet:
        say(line, err if aside else out)


def print_json(values: Any) -> None:
    """Print values as JSON; paths and the like as their text."""
    import json

    typer.echo(json.dumps(values, indent=1, default=str, ensure_ascii=False))


def print_listing(rows: Iterable[tuple[str, str]]) -> None:
    """Print names, and beside each what it is."""
    known = list(rows)
    width = max((len(plain(name)) for name, _ in known), default=0) + 2
    for name, about in known:
        say_wrapped(f"{plain(name):<{width}}{plain(about)}", " " * width)


def say_wrapped(line: str, indent: str) -> None:
    """Print text that may be longer than the terminal is wide."""
    parts = wrap(
        plain(line),
        out.width,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    for part in parts or [""]:
        out.print(Text(part), soft_wrap=True)


def print_table(table: Any, format_: Format = Format.terminal) -> None:
    """Print a table of :mod:`bench.report.frame`."""
    print_tables([table], format_)


def print_tables(tables: Sequence[Any], format_: Format = Format.terminal) -> None:
    """Print tables below each other; as JSON they are one list."""
    if format_ is Format.json:
        from bench.report.render import json_table

        print_json([json_table(table) for table in tables])
        return
    for n, table in enumerate(tables):
        if n and format_ in {Format.csv, Format.latex}:
            typer.echo()
        _print(table, format_)


def _print(table: Any, format_: Format) -> None:
    from bench.report import render

    if format_ is Format.terminal:
        for line in ("", *render.terminal(table, out.width)):
            out.print(Text(line), soft_wrap=True)
    elif format_ is Format.markdown:
        typer.echo(render.markdown(table))
    elif format_ is Format.latex:
        typer.echo(render.latex(table), nl=False)
    else:
        typer.echo(render.csv_table(table), nl=False)
        for line in table.notes:  # figures alone go to the file
            say(line, err)


def print_assets(items: Iterable[dict[str, Any]]) -> None:
    """Print what is not shipped: a line for each thing, what is known of it below."""
    for item in items:
        size = f"{item['size_mb']} MB" if item["size_mb"] else "size not known"
        licence = item["licence"] or "licence not stated"
        source, _, commit = item["source"].partition("@")
        source = f"{source} at {commit[:8]}" if commit else source
        say_wrapped(f"{item['name']}: here: {item['here']}; {size}; {licence}", "    ")
        for line in (item["about"], source, item["flag"]):
            say_wrapped(f"    {line}", "    ")
