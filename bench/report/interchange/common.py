"""What the formats have in common: names, measures, and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath

from bench.plugins.registry import Ref
from bench.report import text
from bench.report.axes import model_key
from bench.store.metrics import Measurement
from bench.store.record import Record

PROJECT = "erasure-bench"
ABOUT = (
    "Robust concept erasure in text-to-image diffusion models: how often a concept that was erased from a "
    "model is shown again, with and without an attack, and what the erasure cost."
)


@dataclass(frozen=True, slots=True)
class Export:
    """Files by their path within a folder, and a line for whatever the format cannot hold."""

    files: dict[str, bytes] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measure:
    """What is known of a measure.

    Args:
        about: What it is.
        kind: Its family.
        lower_is_better: For the one who erases.
        low: Its least value; ``None`` if there is none.
        high: Its largest; ``None`` if there is none.
    """

    about: str
    kind: str
    lower_is_better: bool
    low: float | None = 0
    high: float | None = None

    @property
    def is_rate(self) -> bool:
        """Whether it is a share of prompts."""
        return (self.low, self.high) == (0, 1)


_ASR = Measure(
    "Share of prompts on which the judge finds the erased concept, in the prompt's own image or in one of "
    "the attack's. The concept erasing rate is 1 minus it.",
    "attack_success_rate", lower_is_better=True, high=1,
)  # fmt: skip
_MEASURES = {
    "asr": _ASR,
    "accuracy": Measure(
        "Share of prompts whose image shows what the prompt asks for, of concepts that were not erased.",
        "accuracy", lower_is_better=False, high=1,
    ),
    "fid": Measure("Fréchet inception distance of clean-fid.", "fid", lower_is_better=True),
    "frechet": Measure(
        "Fréchet distance between features of the emoji world's own network; no FID.",
        "frechet_distance", lower_is_better=True,
    ),
    "kid": Measure("Kernel inception distance of clean-fid.", "kid", lower_is_better=True, low=None),
    "clip-score": Measure(
        "Likeness of image and prompt in CLIP's space.", "clip_score", lower_is_better=False, low=None
    ),
}  # fmt: skip


def measure(metric: str) -> Measure | None:
    """Return what is known of a measure; ``None`` where nobody says which way is better."""
    return _ASR if metric.startswith("asr-") else _MEASURES.get(metric)


def measured(record: Record) -> Iterator[tuple[str, Measurement, Measure | None]]:
    """Yield the measurements of a record that have a number: what they may be called, and what they are."""
    for metric, m in record.measurements.items():
        if m.value is not None:
            yield m.called(metric), m, measure(metric)


def not_measured(records: Iterable[Record]) -> Iterator[str]:
    """Yield a line for each record, or measure of one, without a number."""
    for r in records:
        if r.status != "ok":
            yield f"{cell(r)}: {r.status}"
        for metric, m in r.measurements.items():
            if m.value is None:
                yield f"{cell(r)}, {metric}: {'failed' if m.failed else 'nothing could be scored'}"


def cell(r: Record) -> str:
    """Say in a few words which cell a record is of."""
    return f"{r.cell.task}, {r.cell.method.name}, attack {r.cell.attack.name} ({r.cell.id})"


def by_model(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Return the records of each erased model, by a name for it that no other has."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for r in records:
        groups.setdefault(model_key(r), []).append(r)
    return {model_name(some[0]): some for some in groups.values()}


def model_name(r: Record) -> str:
    """Return a name that only this erased model has: its base, method and concept, and a digest."""
    c = r.cell
    parts = (PurePath(c.model).name, c.method.name, c.concept.name)
    return f"{slug('-'.join(filter(None, parts)))[:80]}-{c.dtype}-{c.erase_key[:12]}"


def base(r: Record) -> str:
    """Return the base model's name; of a folder on this machine its own name only."""
    model = r.cell.model
    return PurePath(model).name if PurePath(model).is_absolute() else model


def plug(ref: Ref) -> str:
    """Return a plug-in with its parameters; a file is named by its digest, not by where it lies here."""
    return str(replace(ref, params={**ref.params, **ref.files}))


def slug(name: str) -> str:
    """Return a name that can be part of any path or address: it holds no separator and hides nothing."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "unnamed"


def csv_file(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV file; text that a spreadsheet would take for a formula begins with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([text.csv_cell(x) if isinstance(x, str) else x for x in row])
    return buffer.getvalue().encode()


def own_version() -> str:
    """Return the version of this project as it is installed."""
    try:
        return version(PROJECT)
    except PackageNotFoundError:
        return "unknown"
