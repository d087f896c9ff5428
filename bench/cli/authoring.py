"""The commands for authors of plug-ins: ``check``."""

from __future__ import annotations

from dataclasses import asdict
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
            metavar="NAME|FILE",
            autocompletion=complete.plugin_or_task,
            help="A method, attack, evaluator or task; NAME:key=value,...; a file that is listed nowhere.",
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
    remark("Nothing is wrong.", aside=json_)
