"""What is printed, and where."""

from __future__ import annotations

from collections.abc import Sequence
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


class Format(StrEnum):
    """How a table is printed."""

    terminal = "terminal"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"


def say(line: object, to: Console = out, style: str = "") -> None:
    """Print one line; whatever is in it, it stays one line of text."""
    _say_to(line, to, style)


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
        import json

        from bench.report.render import json_table

        typer.echo(json.dumps([json_table(table) for table in tables], indent=1))
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


def assets_table(items: list[Any]) -> Any:
    """Return a table of what is not shipped."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("name, licence", overflow="fold", max_width=24)
    table.add_column("here")
    table.add_column("MB", justify="right")
    table.add_column("what it is, where it comes from, the flag for your own copy", overflow="fold")
    for item in items:
        about = item.asset
        name = f"{item.name}\n{about.licence or 'licence not stated'}"
        source, _, commit = about.source.partition("@")
        source = f"{source} at {commit[:8]}" if commit else source
        text = f"{about.about}\n{source}\n{item.flag}"
        state = "yes" if item.path else "in part" if item.partly else "no"
        cells = (name, state, str(about.size or "?"), text)
        table.add_row(*("\n".join(map(plain, cell.split("\n"))) for cell in cells))
    return table
