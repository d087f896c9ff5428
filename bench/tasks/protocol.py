"""What a task's paper did, and what differs from that.

A shipped task follows its paper as far as shipped files allow. Its table ``[task.paper]`` says what the
paper did otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from bench.core.errors import SpecError
from bench.plugins.registry import create
from bench.tasks.entries import ASSET, Entry, Measure, shipped

ProtocolName = Literal["default", "paper"]
"""Whose prompts, judge and guidance a task takes: what is shipped, or what its paper took."""


def under(entry: Entry, protocol: ProtocolName) -> Entry:
    """Return what a task says under a protocol.

    Raises:
        SpecError: The paper's is asked for, and the task follows no paper.
    """
    if protocol == "default":
        return entry
    if not entry.paper:
        have = [name for name, other in shipped(entry.world).items() if other.paper]
        raise SpecError(
            f"--protocol paper: task {entry.name!r} follows no paper; "
            f"of the {entry.world} world these do: {', '.join(have) or 'none'}"
        )
    return replace(entry, says={k: v for k, v in entry.paper.items() if k != "about"})


def deviations(
    entry: Entry, measures: Sequence[Measure], guidance: str, own: str = ""
) -> Iterator[str]:
    """Yield in words what a task does otherwise than its paper.

    Args:
        entry: The task.
        measures: What is measured.
        guidance: Whose guidance the rows are drawn with.
        own: The user's prompt set, if there is one.
    """
    if not entry.paper:
        return
    paper = replace(entry, says=entry.paper)
    if own or entry.prompts != paper.prompts:
        yield f"prompts {own or entry.prompts} instead of {paper.prompts.removeprefix(ASSET)}"
    for mine, theirs in zip(measures, paper.measures, strict=True):
        if create("evaluators", mine.evaluator) != create("evaluators", theirs.evaluator):
            yield f"judge {mine.evaluator} instead of {theirs.evaluator}"
    if guidance != paper.guidance:
        yield f"guidance {guidance} instead of {paper.guidance}"
