"""What every task keeps to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.core.errors import AssetError, BenchError, StoreError
from bench.engine.checks.finding import Finding
from bench.plan.plan import check_prompts, missing
from bench.tasks.lookup import homes
from bench.tasks.tasks import load_task, needs


def check_task(name: str, assets: Mapping[str, Path]) -> Iterator[Finding]:
    """Yield the findings of a task, in each world that has it.

    Args:
        name: Its name, or its file.
        assets: Local paths of weights and data.

    Raises:
        AssetError: A file that it needs is not here.
    """
    who = f"task {name}"
    rule = "its file says what a task must"
    try:
        entries = homes(name)
        yield Finding(who, rule)
        for world, entry in entries.items():
            rule = f"its prompts can be read, {world} world"
            if lines := missing(needs(entry, world), assets):
                raise AssetError("; ".join(lines.values()))
            task = load_task(entry, world, given=assets)
            yield Finding(who, rule)
            rule = f"its judges know its labels, {world} world"
            check_prompts(task, assets)
            yield Finding(who, rule)
    except (AssetError, StoreError):
        raise
    except BenchError as exc:
        yield Finding(who, rule, "wrong", str(exc))
