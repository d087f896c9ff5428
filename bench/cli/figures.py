"""The command that draws figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import complete
from bench.cli.commands import app
from bench.cli.options import RESULTS, Device, Json, OnlyAttacks, OnlyMethods, OnlySeed, Results
from bench.cli.records import check_known, records_in
from bench.cli.terminal import print_json, print_listing, progress, say
from bench.core.errors import SpecError


@app.command()
def figure(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Which one; without a name all are listed.",
            autocompletion=complete.names("figures"),
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="FILE.png, FILE.svg or FILE.pdf."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE.csv", help="Also write its numbers.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this task. Repeatable.")
    ] = None,
    method: OnlyMethods = None,
    attack: OnlyAttacks = None,
    seed: OnlySeed = None,
    measure: Annotated[
        str,
        typer.Option(
            metavar='"TASK METRIC"', help='pareto: what is kept, as "coco fid".', show_default=False
        ),
    ] = "",
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Prompts of each cell: of examples (default 6), neurons (3), sensitivity (all).",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    results: Results = RESULTS,
    json_: Json = False,
) -> None:
    """Draw a figure of stored records as a PNG, SVG or PDF file.

    Example: bench figure pareto --task church --out pareto.svg --data pareto.csv
    """
    from bench.report.figures.catalog import ALONE, FIGURES, csv_of, figure_about, from_records
    from bench.report.figures.select import Wanted
    from bench.report.figures.style import format_of
    from bench.store.files import write

    if name is None:
        if json_:
            print_json([{"name": each, "about": about} for each, about in FIGURES.items()])
        else:
            print_listing(FIGURES.items())
        return
    figure_about(name)
    if out is None:
        raise SpecError(f"figure {name}: expected --out FILE.png, FILE.svg or FILE.pdf, got none")
    format_of(out)
    records = records_in(results)
    check_known(records, "task", task or ())
    check_known(records, "method", method or ())
    check_known(records, "attack", attack or ())
    wanted = Wanted(tuple(task or ()), tuple(method or ()), tuple(attack or ()), seed)
    if name in ALONE:
        drawing, numbers = from_records(name, records, wanted, measure)
    else:
        from bench.engine.figures import with_model

        drawing, numbers = with_model(
            name, records, wanted, device=device, limit=limit, console=progress
        )
    drawing.save(out)
    if data:
        write(data, csv_of(numbers).encode())
    if json_:
        print_json({"file": out, "title": drawing.title, "numbers": [asdict(n) for n in numbers]})
    else:
        say(f"{out}: {drawing.title}")
