"""The command that prints tables of records, or writes records for others."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.commands import app
from bench.cli.options import (
    RESULTS,
    Corrected,
    Json,
    OnlyAttacks,
    OnlyMethods,
    OnlySeed,
    Results,
    Strict,
    Tasks,
)
from bench.cli.records import records_of
from bench.cli.terminal import Format, err, print_tables, remark, say
from bench.core.errors import SpecError
from bench.report.text import counted

_PAPER = "With paper"
_OTHERS = "Write the records for others, instead of tables"
_NEEDS = {
    "transfer": "records of `bench run --attack transfer:source=RECORD.json`",
    "costs": "records of attacks, as of `bench run --attack unlearndiff`",
    "curve": "records of a judge that gives scores, as of `bench run --task nudity`",
    "labels": "records of a judge that finds labels, as of `bench run --task nudity`",
    "floors": "records of `bench run --attack unlearndiff --floors`",
    "seeds": "records of several seeds, as of `bench run --seed 0 --seed 1`",
}
"""What a table needs, by its option."""


class ReportOf(StrEnum):
    """What `bench report` prints beside tables of one's own records."""

    paper = "paper"
    claims = "claims"


class Interchange(StrEnum):
    """The formats of others that records can be written in."""

    eee = "eee"
    hf = "hf"
    croissant = "croissant"
    errorbars = "errorbars"


@app.command()
def report(
    of: Annotated[
        ReportOf | None,
        typer.Argument(
            metavar="paper|claims",
            help="paper: Tables 1-8 of arXiv 2405.16534 (P-ESD), filled from records, beside its numbers. "
            "claims: what it says of methods, tested on records.",
            show_default=False,
        ),
    ] = None,
    results: Results = RESULTS,
    task: Tasks = None,
    method: OnlyMethods = None,
    attack: OnlyAttacks = None,
    seed: OnlySeed = None,
    format_: Annotated[
        Format,
        typer.Option(
            "--format",
            help="How to print. CSV has a line for each figure; text that a spreadsheet would take "
            "for a formula begins with an apostrophe there.",
        ),
    ] = Format.terminal,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Prompts found on A, given to B.")
    ] = False,
    costs: Annotated[bool, typer.Option("--costs", help="What the attacks spent.")] = False,
    curve: Annotated[
        bool, typer.Option("--curve", help="Attack success by the judge's threshold.")
    ] = False,
    labels: Annotated[bool, typer.Option("--labels", help="Hits by label.")] = False,
    tests: Annotated[
        bool,
        typer.Option(
            "--tests", help="Differences between methods, corrected for their number; tie groups."
        ),
    ] = False,
    floors: Annotated[
        bool,
        typer.Option(
            "--floors", help="Attacks beside random, seed-search and models that never learned."
        ),
    ] = False,
    corrected: Corrected = "",
    seeds: Annotated[
        bool, typer.Option("--seeds", help="How much rates vary by seed and by prompts.")
    ] = False,
    ripple: Annotated[
        bool,
        typer.Option(
            "--ripple",
            help="What an erasure does to other subjects, of the task subjects: near ones and others; "
            "each of them with another --format than terminal.",
        ),
    ] = False,
    table: Annotated[
        list[int] | None,
        typer.Option(
            "--table", metavar="N", help="Only this table. Repeatable.", rich_help_panel=_PAPER
        ),
    ] = None,
    difference: Annotated[
        bool,
        typer.Option(
            "--difference",
            help="Differences from the paper's numbers also for other models than its own.",
            rich_help_panel=_PAPER,
        ),
    ] = False,
    strict: Strict = False,
    export: Annotated[
        Interchange | None,
        typer.Option(
            help="eee (Every Eval Ever 0.3), hf (Hugging Face's eval.yaml and .eval_results), croissant, "
            "or errorbars (CSV).",
            rich_help_panel=_OTHERS,
            show_default=False,
        ),
    ] = None,
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where to write them.",
            rich_help_panel=_OTHERS,
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="OWNER/NAME",
            help="For hf: the benchmark's data set there.",
            rich_help_panel=_OTHERS,
        ),
    ] = "",
    json_: Json = False,
) -> None:
    """Print tables of stored records: concept erasing rates, transfer, costs, or the paper's.

    Records that cannot be read, disagree, or are not what their name says are
    named and left out.

    Example: bench report --format markdown > table.md

    Example: bench report paper --table 1 --format latex > table1.tex

    Example: bench report claims --results results/reference

    Example: bench report --tests --task church --method esd --method p-esd

    Example: bench report --export eee --out shared
    """
    if (export is None) != (out_ is None):
        raise SpecError(
            "--export and --out are given together: in which format, and to which folder"
        )
    only = None if of is ReportOf.paper else seed  # there, the others are told of
    records = records_of(results, task, methods=method, attacks=attack, seed=only, strict=strict)
    shown_as = Format.of(json_, format_)
    if export and out_:
        _write_export(export, records, out_, dataset)
        return
    if of is not ReportOf.paper and (table or difference):
        raise SpecError("--table and --difference are for `bench report paper`")
    asked = {"transfer": transfer, "costs": costs, "curve": curve, "labels": labels,
             "floors": floors, "seeds": seeds}  # fmt: skip
    if of is ReportOf.paper:
        tables = _paper(records, corrected, table or (), compare=difference, seed=seed)
    elif of is ReportOf.claims:
        tables = _claims(records, corrected)
    else:
        tables = _asked_for(records, asked, corrected, results, tests=tests)
        tables += _ripple(records, results, shown_as, corrected) if ripple else []
        tables = tables or _rates(records, _judges(records, corrected))
    print_tables([*tables, *_validity(records, corrected, ripple=ripple)], shown_as)
    if failed := sum(r.status == "failed" for r in records):
        place = shlex.quote(str(results))
        remark(
            f"{counted(failed, 'failed cell')}: `bench run` tries again; to drop what failed, delete the "
            f'records that this lists: grep -rl \'^ "status": "failed"\' {place}',
            aside=True,
        )


def _write_export(form: Interchange, records: list[Any], folder: Path, dataset: str) -> None:
    from bench.report.interchange import exported
    from bench.store.files import write

    made = exported(form.value, records, dataset=dataset)
    for line in made.left_out:
        say(f"left out: {line}", err)
    if not made.files:
        raise SpecError(
            f"none of the {len(records)} records has a number that {form.value} can hold"
        )
    for path, data in made.files.items():
        write(folder / path, data)
    say(f"{folder}: {counted(len(made.files), 'file')} of {counted(len(records), 'record')}")


def _judges(records: list[Any], corrected: str, *, ripple: bool = False) -> Any:
    """Return what ``--corrected`` says of the judges of target tasks, or of the task of subjects."""
    from bench.report.corrected import judges_of
    from bench.report.subjects import asked
    from bench.report.tables import judged

    return judges_of((r for r in records if (asked(r) if ripple else judged(r))), corrected)


def _validity(records: list[Any], corrected: str, *, ripple: bool) -> list[Any]:
    """Return what is known of the judges that rates are corrected for, as a table."""
    from bench.report.corrected import judges_table

    return [judges_table(_judges(records, corrected, ripple=ripple))] if corrected else []


def _paper(records: list[Any], corrected: str, numbers: Any, **how: Any) -> list[Any]:
    from bench.report.paper import paper_tables

    return paper_tables(records, numbers, judges=_judges(records, corrected), **how)


def _claims(records: list[Any], corrected: str) -> list[Any]:
    from bench.report.claims import claims_tables

    return claims_tables(records, _judges(records, corrected))


def _rates(records: list[Any], judges: Any) -> list[Any]:
    """Return what is printed unasked: rates, and floors if models that never learned are on record."""
    from bench.report.floors import NEVER, floors_table
    from bench.report.ripple import ripple_tables
    from bench.report.tables import cer_tables

    never = any(r.cell.method.name == NEVER for r in records)
    beside = [floors_table(records, judges)] if never else []
    rates = cer_tables(records, judges=judges) or ripple_tables(records, each=False, judges=judges)
    return [*rates, *(table for table in beside if table.lines)]


def _asked_for(
    records: list[Any], asked: dict[str, bool], corrected: str, results: Path, *, tests: bool
) -> list[Any]:
    from bench.report.between import between_tables
    from bench.report.floors import floors_table
    from bench.report.judging import label_table, threshold_curve
    from bench.report.seeds import seeds_table
    from bench.report.tables import cost_table, transfer_table

    of_verdicts = {"costs": cost_table, "curve": threshold_curve, "labels": label_table,
                   "seeds": seeds_table}  # fmt: skip
    of_rates = {"transfer": transfer_table, "floors": floors_table}
    named = [name for name, on in asked.items() if on]
    if corrected and (plain := [name for name in named if name in of_verdicts]):
        raise SpecError(f"--{plain[0]} is not corrected for the judge: leave --corrected out")
    judges = _judges(records, corrected if tests or named else "")
    tables = []
    for name in named:
        table = (
            of_verdicts[name](records) if name in of_verdicts else of_rates[name](records, judges)
        )
        if not table.lines:
            raise SpecError(f"--{name}: expected {_NEEDS[name]}, found none in {results}")
        tables.append(table)
    return [*tables, *(between_tables(records, judges) if tests else [])]


def _ripple(records: list[Any], results: Path, format_: Format, corrected: str) -> list[Any]:
    from bench.report.ripple import ripple_tables
    from bench.report.subjects import asked

    tables = []
    if any(map(asked, records)):
        judges = _judges(records, corrected, ripple=True)
        tables = ripple_tables(records, each=format_ is not Format.terminal, judges=judges)
    if not tables:
        raise SpecError(
            f"--ripple: {results} has no record of the task subjects: run bench run --method none "
            "--method esd --task church --task subjects"
        )
    return tables
