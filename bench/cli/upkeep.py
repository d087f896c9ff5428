"""The commands that look after an installation: ``doctor`` and ``cache``."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from bench.cli.app import App
from bench.cli.commands import app
from bench.cli.options import RESULTS, Json, Results
from bench.cli.terminal import print_json, print_listing, remark, say
from bench.report.text import counted

DAY = 24 * 3600 * 10**9
MB = 10**6
_AGES = 100 * 365  # days: the oldest that can be asked for, so that it is a time


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"erasure-bench {version('erasure-bench')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Say which version this is."""


@app.command()
def doctor(results: Results = RESULTS, json_: Json = False) -> None:
    """Look for what would stop a run: versions, devices, disk, plug-ins, weights.

    Exit code 1 if something is wrong.

    Example: bench doctor
    """
    from bench.engine.doctor import examine

    found = list(examine(results))
    if json_:
        print_json([asdict(finding) for finding in found])
    else:
        print_listing((f"{f.state:<6}{f.about}", f.says) for f in found)
    if any(finding.state == "wrong" for finding in found):
        raise typer.Exit(1)


cache = App(
    no_args_is_help=True,
    help="Look after the cache: size, damage, age. What is deleted is made again.",
)
app.add_typer(cache, name="cache")


@cache.command("size")
def size(json_: Json = False) -> None:
    """Say how much is in the cache, and where it is.

    Example: bench cache size
    """
    from bench.store.artifacts import Artifacts
    from bench.store.upkeep import usage

    where = Artifacts()
    parts = usage(where)
    if json_:
        print_json({"folder": where.root, "parts": [asdict(part) for part in parts]})
        return
    print_listing(
        (part.part, f"{part.size / MB:>9.1f} MB in {part.files} files: {part.about}")
        for part in parts
    )
    total = sum(part.size for part in parts) / MB
    remark(f"{total:.1f} MB in all, in the folder")
    remark(str(where.root))  # alone: a path that is cut cannot be used


@cache.command("verify")
def verify(json_: Json = False) -> None:
    """Read every file of the cache, and name those that are damaged (exit 5).

    They are made again when a run needs them.

    Example: bench cache verify
    """
    from bench.store.artifacts import Artifacts
    from bench.store.upkeep import damaged

    bad = list(damaged(Artifacts()))
    if json_:
        print_json(bad)
    else:
        for path in bad:
            say(f"damaged: {path}")
        are = "is" if len(bad) == 1 else "are"
        remark(f"{counted(len(bad), 'file')} {are} damaged" if bad else "nothing is damaged")
    if bad:
        raise typer.Exit(5)


@cache.command("prune")
def prune(
    days: Annotated[
        float,
        typer.Option(min=0, max=_AGES, metavar="N", help="Delete what was written more days ago."),
    ] = 30,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this part, as in `bench cache size`. Repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much it is.")] = False,
) -> None:
    """Delete what is old. Records are never deleted.

    Example: bench cache prune --days 7 --part images
    """
    from bench.store.artifacts import Artifacts
    from bench.store.upkeep import prune as prune_cache

    before = time.time_ns() - int(days * DAY)
    gone = prune_cache(Artifacts(), before, part or [], really=not dry_run)
    verb = "would be deleted" if dry_run else "deleted"
    say(f"{gone.files} files, {gone.size / MB:.1f} MB {verb}")
