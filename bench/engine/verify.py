"""Draws and judges a random sample of a record's prompts again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from bench.core.errors import BenchError
from bench.engine.provenance import environment
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.report.audit import Audit, Finding
from bench.store.artifacts import Artifacts
from bench.store.record import Record, Row


class Verifier:
    """Keeps models and judges from record to record.

    Args:
        settings: How images are drawn; none that is kept is read.
        sample: How many prompts of each record.
        seed: Which: equal seeds, equal prompts.
        fresh: Erase again also where the erasure is in the cache; the cache stays as it is.
    """

    def __init__(
        self, settings: Settings, sample: int, seed: int = 0, *, fresh: bool = False
    ) -> None:
        self.sample, self.seed = sample, seed
        self._folder = TemporaryDirectory() if fresh else None
        self._erasures = Artifacts(Path(self._folder.name)) if self._folder else settings.artifacts
        self._runner = Runner(replace(settings, keep_images=False), self._erasures)
        self._device, self._made = settings.device, set[str]()

    def redraw(self, of: Audit) -> Iterator[Finding]:
        """Yield for each prompt of the sample whether its verdict is the record's."""
        record, job = of.record, of.job
        if record is None or job is None or record.status != "ok" or not record.rows:
            return
        key = job.cell.erase_key
        if not self._erasures.has_erasure(key):
            self._made.add(key)
        rows = Random(self.seed).sample(record.rows, min(self.sample, len(record.rows)))
        try:
            card, again = self._runner.again(job, rows)
        except BenchError as exc:
            yield Finding("unknown", f"cannot be drawn again: {type(exc).__name__}: {exc}")
            return
        yield from _weights(record, card, self._device, made=key in self._made)
        for row in rows:
            yield _verdict(row, again.get(row.id))


def verified(audits: Iterable[Audit], make: Verifier) -> Iterator[Audit]:
    """Yield what is known of records, with what drawing them again said."""
    for each in audits:
        yield replace(each, findings=(*each.findings, *make.redraw(each)))


def _weights(
    record: Record, now: dict[str, object], device: str, *, made: bool
) -> Iterator[Finding]:
    """Say whether the erasure was the same to the bit; training need not be, on another machine."""
    then = record.erasure
    if "digest" not in then or "digest" not in now:
        return
    equal = then["digest"] == now["digest"]
    if not made:
        what = "the record's" if equal else "another one than the record's"
        yield Finding(
            "note",
            f"the erasure was taken from the cache, not made again: it is {what}; --fresh makes it again",
        )
    elif equal:
        yield Finding("ok", "erased again, and the weights are equal to the bit")
    else:
        yield Finding(
            "note",
            f"erased again, with weights that are not equal to the bit: {_why(record, device)}",
        )


def _why(record: Record, device: str) -> str:
    """Say why an erasure may be another: computed elsewhere, or by a method that draws freely."""
    was, here = record.environment, environment(device)
    other = [
        f"{key} {was[key]} then, {here[key]} now"
        for key in ("machine", "device", "torch", "threads")
        if was.get(key, here[key]) != here[key]
    ]
    if other:
        return f"what was computed elsewhere is rounded otherwise ({'; '.join(other)})"
    return (
        "device, torch and number of threads are those of the record, so the method may not do the same "
        "twice"
    )


def _verdict(then: Row, now: Row | None) -> Finding:
    if now is None:
        return Finding(
            "unknown",
            f"{then.id}: the attack changed the {then.beyond}, which a record does not hold",
        )
    said = {True: "found", False: "not found", None: "unscored"}
    scores = f"score {_scores(then)} then, {_scores(now)} now"
    if now.success is then.success:
        return Finding("ok", f"{then.id}: {said[now.success]} again ({scores})")
    return Finding(
        "differs", f"{then.id}: {said[then.success]} then, {said[now.success]} now ({scores})"
    )


def _scores(row: Row) -> str:
    score = row.own if row.attacked is None else row.attacked
    return "none" if score is None else f"{score:.3f}"
