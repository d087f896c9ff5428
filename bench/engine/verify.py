"""Draws and judges a random sample of a record's prompts again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random

from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.errors import BenchError
from bench.report.audit import Audit, Finding
from bench.store.record import Row


class Verifier:
    """Keeps models and judges from record to record.

    Args:
        settings: How images are drawn; none that is kept is read.
        sample: How many prompts of each record.
        seed: Which: equal seeds, equal prompts.
    """

    def __init__(self, settings: Settings, sample: int, seed: int = 0) -> None:
        self.sample, self.seed = sample, seed
        self._runner = Runner(replace(settings, keep_images=False))

    def redraw(self, of: Audit) -> Iterator[Finding]:
        """Yield for each prompt of the sample whether its verdict is the record's."""
        record, job = of.record, of.job
        if record is None or job is None or record.status != "ok" or not record.rows:
            return
        rows = Random(self.seed).sample(record.rows, min(self.sample, len(record.rows)))
        try:
            card, again = self._runner.again(job, rows)
        except BenchError as exc:
            yield Finding("unknown", f"cannot be drawn again: {type(exc).__name__}: {exc}")
            return
        yield from _weights(record.erasure, card)
        for row in rows:
            yield _verdict(row, again.get(row.id))


def verified(audits: Iterable[Audit], make: Verifier) -> Iterator[Audit]:
    """Yield what is known of records, with what drawing them again said."""
    for each in audits:
        yield replace(each, findings=(*each.findings, *make.redraw(each)))


def _weights(then: dict[str, object], now: dict[str, object]) -> Iterator[Finding]:
    """Say whether the erasure was the same to the bit; training need not be, on another machine."""
    if "digest" in then and "digest" in now:
        if then["digest"] == now["digest"]:
            yield Finding("ok", "the erased weights are equal to the bit")
        else:
            yield Finding("note", "erased again, with weights that are not equal to the bit: other "
                          "processors and numbers of threads round otherwise")  # fmt: skip


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
