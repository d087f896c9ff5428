"""What a reader should be warned of beside a line of the leaderboard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report.frame import measured
from bench.report.notes import size
from bench.report.statistics import detectable
from bench.report.text import counted
from bench.store.record import Record

GAP = 0.15
"""A line is marked if its prompts are too few for a test to find this difference, all of it one way."""
FID_SIZE = 30_000
"""Images on which FID is published for photographs."""
COLLAPSED = 0.5
"""Share of the unchanged model's retained accuracy below which a method has broken the model."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A warning: in two words, and in a sentence."""

    short: str
    text: str


def flags(
    targets: Sequence[Record], kept: Sequence[Record], base: Sequence[Record]
) -> tuple[Flag, ...]:
    """Return the warnings of a line.

    Args:
        targets: Its records, one for each attack.
        kept: Records of retain and benign tasks on the same erased model.
        base: The same of the unchanged model.
    """
    kinds = (_few(targets), _unscored([*targets, *kept]), _not_attacked(targets), _not_adaptive(targets),
             _wrong_fid(kept), _collapsed(kept, base), _unfinished([*targets, *kept]))  # fmt: skip
    return tuple(flag for kind in kinds for flag in kind)


def number(value: Any) -> float | None:
    """Return what a record says if it is a number: a record may say anything."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _few(targets: Iterable[Record]) -> Iterator[Flag]:
    n = min((r.cell.prompts for r in targets if r.status == "ok"), default=None)
    if n is None or ((found := detectable(n)) and found.share <= GAP):
        return
    least = f"of less than {100 * found.share:.0f} points" if found else "of any size"
    yield Flag(
        f"N={n}",
        f"Only {counted(n, 'prompt')}: no test of two methods can find a difference {least}.",
    )


def _unscored(records: Iterable[Record]) -> Iterator[Flag]:
    many = {
        r.cell.task: m
        for r in records
        for m in r.measurements.values()
        if "unscored" in measured(m).flags
    }
    for task, m in many.items():
        yield Flag(
            "unscored",
            f"{task}: {m.unscored} of {m.n + m.unscored} images could not be judged. "
            "They count neither as erased nor as not erased.",
        )


def _not_attacked(targets: Iterable[Record]) -> Iterator[Flag]:
    for r in targets:
        whole = size(r)
        if "not all attacked" in whole.flags:
            yield Flag(
                "not all attacked",
                f"{r.cell.attack.name}: {whole.attacked} of {len(r.rows)} prompts were attacked; "
                "the others are too long for it.",
            )


def _not_adaptive(targets: Iterable[Record]) -> Iterator[Flag]:
    if any(r.erasure.get("sampler_time") is True for r in targets):
        yield Flag(
            "not adaptive",
            "This method works while sampling and leaves the weights as they are. No attack here is "
            "made for that: an adaptive attack may do better.",
        )


def _wrong_fid(kept: Iterable[Record]) -> Iterator[Flag]:
    sizes = {
        m.n
        for r in kept
        for metric, m in r.measurements.items()
        if r.cell.world == "photo" and metric == "fid" and m.value is not None and m.n != FID_SIZE
    }
    for n in sorted(sizes):
        yield Flag(
            "FID size",
            f"FID of {n} images; published ones are of {FID_SIZE}. FID falls as the number rises, so they "
            "do not compare.",
        )


def _collapsed(kept: Iterable[Record], base: Iterable[Record]) -> Iterator[Flag]:
    before = {r.cell.task: r.measurements.get("accuracy") for r in base}
    for r in kept:
        mine, theirs = r.measurements.get("accuracy"), before.get(r.cell.task)
        if not mine or not theirs or mine.value is None or not theirs.value:
            continue
        if mine.value < COLLAPSED * theirs.value:
            yield Flag(
                "model broken",
                f"{r.cell.task}: accuracy {mine.value:.2f}, of the unchanged model {theirs.value:.2f}. "
                "A model that draws nothing well shows no concept either.",
            )


def _unfinished(records: Iterable[Record]) -> Iterator[Flag]:
    for r in records:
        if r.status != "ok":
            what = r.cell.task + (f", {r.cell.attack.name}" if r.cell.attacked else "")
            yield Flag(r.status, f"{what}: {r.reason}")
