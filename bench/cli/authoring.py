"""The commands for authors of plug-ins: ``check`` and ``new``."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import complete
from bench.cli.commands import app
from bench.cli.options import Assets, Json, given
from bench.cli.terminal import print_json, remark, say, say_wrapped

BROKEN = 3


@app.command()
def check(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE|DISTRIBUTION",
            autocompletion=complete.plugin_or_task,
            help="A method, attack, evaluator or task; NAME:key=value,...; a file that is listed nowhere; "
            "or a distribution: all that is in it.",
        ),
    ],
    asset: Assets = None,
    label: Annotated[
        str,
        typer.Option(
            help="What an evaluator looks for. Default: a church, van gogh or nudity.",
            show_default=False,
        ),
    ] = "",
    json_: Json = False,
) -> None:
    """Look whether a plug-in keeps to what all keep to, and say what to do (exit 3).

    It runs twice on a model of random weights, with small values of what would make it slow, such as steps.

    Example: bench check methods/mine.py

    Example: bench check my-lab/fade:steps=5

    Example: bench check my-lab
    """
    from bench.engine.checks import check as check_

    found = check_(what, assets=given(asset), label=label)
    if json_:
        findings = list(found)
        print_json([asdict(finding) for finding in findings])
    else:
        findings, of = [], ""
        for finding in found:
            if finding.of != of:
                of = finding.of
                say(of)
            says = f": {finding.says}" if finding.says else ""
            say_wrapped(f"  {finding.state:<7}{finding.rule}{says}", " " * 9)
            findings.append(finding)
    wrong = sum(finding.state == "wrong" for finding in findings)
    if wrong:
        raise typer.Exit(BROKEN)
    notes = sum(finding.state == "note" for finding in findings)
    remark(f"Nothing is wrong{(notes and f'; notes: {notes}') or ''}.", aside=json_)


class What(StrEnum):
    """What can be begun."""

    method = "method"
    attack = "attack"
    evaluator = "evaluator"
    task = "task"


@app.command()
def new(
    what: Annotated[
        What, typer.Argument(metavar="KIND", help="method, attack, evaluator or task.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters, as in my-method.")],
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="The checkout, or the folder of your distribution. Default: this folder, for a task in a "
            "checkout tasks/; with --distribution a folder NAME.",
            show_default=False,
        ),
    ] = None,
    distribution: Annotated[
        bool,
        typer.Option(
            "--distribution",
            help="For a package of your own, which is begun if the folder has none.",
        ),
    ] = False,
) -> None:
    """Write a small plug-in or task that runs, to be changed. Nothing is overwritten.

    A plug-in in a checkout gets its line in PLUGINS, by which tests/test_plugins.py tests it; in a
    distribution its entry point, and a test. A task's NAME is its concept, a subject of the emoji world.

    Example: bench new method my-method

    Example: bench new attack again --distribution --out my-lab
    """
    from bench.engine.scaffold import write_new

    done = write_new(what.value, name, out_, distribution=distribution)
    for path in done.files:
        say(f"{path}: new")
    for path in done.changed:
        say(f"{path}: a line more")
    first = f"pip install -e {out_ or name}; " if distribution else ""
    remark(f"Next: {first}bench check {done.check}")
    if what is What.task:
        remark(f"Then: bench run --method esd --attack none --attack random --task {done.check}")
