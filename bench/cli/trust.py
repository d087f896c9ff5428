"""The commands on records of others: verify them, and hand in attacks on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.cli.options import RESULTS, Assets, BatchSize, Device, Json, Results, given
from bench.cli.terminal import (
    Format,
    err,
    print_json,
    print_tables,
    progress,
    remark,
    say,
    say_wrapped,
)
from bench.core.devices import AUTO
from bench.core.errors import PluginError, SpecError, StoreError
from bench.report.text import counted

if TYPE_CHECKING:
    from bench.report.audit import Audit

_WORDS = {"ok": "ok", "note": "note", "wrong": "WRONG", "differs": "DIFFERS", "unknown": "?"}


def verify(
    record: Annotated[
        list[Path], typer.Argument(metavar="RECORD...", help="Records, or folders of records.")
    ],
    sample: Annotated[
        int, typer.Option(min=0, metavar="N", help="Prompts of each record to draw again.")
    ] = 3,
    seed: Annotated[int, typer.Option(metavar="N", help="Which prompts these are.")] = 0,
    task: Annotated[
        str, typer.Option(metavar="FILE.toml", help="The task of your own that they are of.")
    ] = "",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Erase again what is in the cache; it stays there.")
    ] = False,
    asset: Assets = None,
    device: Device = AUTO,
    batch_size: BatchSize = 64,
    json_: Json = False,
) -> None:
    """Check records, and draw and judge a random sample of their prompts again.

    Of each record: can it be read, is its name the digest of its content,
    does a request of today ask for the same cell, do its rows give its rates
    and intervals, does each verdict follow from its score; then the sample,
    on a model that is erased again, or is in the cache: --fresh erases it again.

    Exit codes: 5 a record does not hold together; 3 all do, but a prompt has
    another verdict now; 0 neither. What could not be checked says so ("?").

    Example: bench verify results/reference --sample 0

    Example: bench verify results/local/emoji/church/church/esd--p4d--0123456789abcdef.json --sample 8
    """
    from bench.report.audit import audit

    audits: Iterator[Audit] = (audit(path, given(asset), task=task) for path in _records(record))
    if sample:
        from bench.core.devices import use
        from bench.engine.settings import Settings
        from bench.engine.verify import Verifier, verified

        settings = Settings(use(device), batch_size, assets=given(asset))
        audits = verified(audits, Verifier(settings, sample, seed, fresh=fresh))
    done: list[Audit] = []
    for each in audits:
        done.append(each)
        if json_:
            continue
        say(each.path)
        for finding in each.findings:
            say_wrapped(f"  {_WORDS[finding.state]:<8}{finding.text}", " " * 10)
    states: list[str] = [finding.state for each in done for finding in each.findings]
    wrong, differ, unknown = map(states.count, ("wrong", "differs", "unknown"))
    if json_:
        print_json([{"path": a.path, "findings": list(map(asdict, a.findings))} for a in done])
    remark(
        f"{counted(len(done), 'record')}: {counted(wrong, 'fault')}, {counted(differ, 'other verdict')}, "
        f"{unknown} not checked",
        aside=json_,
    )
    if wrong or differ:
        raise typer.Exit(StoreError.exit_code if wrong else PluginError.exit_code)


def submit(
    record: Annotated[
        Path, typer.Argument(metavar="RECORD", help="A record of the erased model and the task.")
    ],
    texts: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="CSV or JSONL: id, text, and if you like seed, guidance."
        ),
    ],
    label: Annotated[str, typer.Option(help="What to call the attack in tables.")],
    asset: Assets = None,
    task: Annotated[
        str, typer.Option(metavar="FILE.toml", help="The task of your own that it is of.")
    ] = "",
    results: Results = RESULTS,
    device: Device = AUTO,
    batch_size: BatchSize = 64,
    json_: Json = False,
) -> None:
    """Hand in adversarial texts for an erased model: they are drawn, judged and become a record.

    What the file says of success does not count: images are made and judged
    here. A prompt without a text stays as it is. The record's attack is
    called "submitted", with your label; what it took to find the texts is
    unknown. It counts for the best known prompt attack.

    Example: bench submit results/local/emoji/church/church/esd--none--0123456789abcdef.json mine.csv
    --label mine
    """
    from bench.engine import api
    from bench.plan.asked import request_of, setting_of
    from bench.plugins.registry import Ref
    from bench.report.tables import cer_tables, in_a_line
    from bench.store.store import read

    base = read(record)
    setting = setting_of(base.cell, base.protocol)
    attack = Ref("submitted", {"source": str(texts), "label": label})
    found = api.run(
        request_of(base.cell, given(asset), attack=attack, task=task, setting=setting),
        results=results, device=device, batch_size=batch_size, console=progress,
    )  # fmt: skip
    print_tables(cer_tables(found), Format.of(json_))
    remark(f"{'It was there already. ' if found.known else ''}Records: {results}", aside=json_)
    for failed in found.failed if progress.quiet else ():  # else it was said
        say(in_a_line(failed), err)
    if found.failed:
        raise typer.Exit(PluginError.exit_code)


def _records(places: list[Path]) -> Iterator[Path]:
    """Yield the files of records: those that are named, and those in folders."""
    from bench.store.store import record_files

    for place in places:
        if not place.is_dir():
            yield place
        elif found := record_files(place):
            yield from found
        else:
            raise SpecError(f"{place}: expected records, there is none")
