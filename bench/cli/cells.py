"""Shows one cell, in the terminal and as a picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from bench.cli.records import records_in
from bench.cli.terminal import out, print_json, progress, remark
from bench.report.text import plain

_NAME = 12


def show_cell(
    cell: str, results: Path, picture: Path | None, device: str, limit: int, *, json_: bool = False
) -> None:
    """Print the story of a cell, or its record; with ``picture`` draw its prompts as well."""
    from bench.report.figures.style import format_of
    from bench.report.story import of_id, story

    if picture:
        format_of(picture)
    records = records_in(results)
    record = of_id(records, cell)
    if json_:
        print_json(asdict(record))
    for line in () if json_ else story(record):
        text = Text(f"{plain(line.name):<{_NAME}} ")
        if len(line.name) >= _NAME:
            out.print(Text(plain(line.name)), soft_wrap=True)
            text = Text(" " * (_NAME + 1))
        for i, (word, mark) in enumerate(line.words or [(line.text, False)]):
            text.append(" " if i else "")
            text.append(plain(word), "bold underline" if mark else "")
        _print_hanging(text)
    if picture:
        from bench.engine.figures import drawn_cell

        drawing, _ = drawn_cell(record, records, device=device, limit=limit, console=progress)
        drawing.save(picture)
        remark(f"{'picture':<{_NAME}} {picture}", aside=json_)


def _print_hanging(text: Text) -> None:
    """Print a text whose further lines stand below its first word."""
    head, body = text[: _NAME + 1], text[_NAME + 1 :]
    for i, part in enumerate(body.wrap(out, max(20, out.width - _NAME - 1)) or [Text()]):
        part.rstrip()
        out.print((head if i == 0 else Text(" " * (_NAME + 1))) + part, soft_wrap=True)
