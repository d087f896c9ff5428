"""What the page of one cell shows, as data."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from bench.plugins.registry import Ref
from bench.report.command import command, remarks
from bench.report.frame import Figure, measured
from bench.report.hidden import hidden
from bench.report.notes import notes
from bench.report.pictures import TILE
from bench.report.render import figure
from bench.report.tables import judged
from bench.site.flags import Flag, flags
from bench.store.metrics import complement
from bench.store.record import Record, Row
from bench.tasks.safety import asks_for_nudity, blurred

_CALLED = {"sampler_time": "works while sampling", "peak_memory_mb": "peak memory, MB"}
_LARGEST = 20_000_000  # bytes of a picture


@dataclass(frozen=True, slots=True)
class Outcome:
    """One prompt of a cell, in words."""

    id: str
    text: str
    seed: int
    verdict: str
    own: str
    attacked: str
    adversarial: str | None
    beyond: str
    images: int


@dataclass(frozen=True, slots=True)
class Page:
    """The page of one cell; nothing in it is escaped.

    Args:
        id: The cell's.
        record: The cell's.
        figures: What was measured, by name.
        rows: Its prompts.
        notes: What must be known of it.
        flags: Warnings.
        facts: Provenance, by heading: name and value.
        command: Computes it again.
        remarks: What this needs that only its user has; then nothing is promised.
        rest: The record without its prompts, as JSON.
        picture: A PNG, as a data URL.
        hidden: Whether the picture waits for a click.
    """

    id: str
    record: Record
    figures: tuple[tuple[str, str, Figure], ...]
    rows: tuple[Outcome, ...]
    notes: tuple[str, ...]
    flags: tuple[Flag, ...]
    facts: Mapping[str, tuple[tuple[str, str], ...]]
    command: str
    remarks: tuple[str, ...]
    rest: str
    picture: str = ""
    hidden: bool = False


def page_of(record: Record, picture: Path) -> Page:
    """Return what is shown of a record.

    Args:
        record: The cell's.
        picture: Where its picture lies, if it was kept.
    """
    id_, shown = record.cell.id, _picture(record, picture)
    return Page(
        id_,
        record,
        tuple(_figures(record)),
        tuple(_outcome(record, row) for row in record.rows),
        notes([record]),
        flags([record] if judged(record) else [], [], []),
        _facts(record, id_),
        command(record),
        remarks(record),
        json.dumps(asdict(replace(record, rows=())), indent=1),
        shown,
        bool(shown) and asks_for_nudity(record.cell.concept, ()),
    )


def _figures(r: Record) -> Iterator[tuple[str, str, Figure]]:
    for metric, m in r.measurements.items():
        if metric == judged(r):
            f = measured(complement(m))
            yield "CER", figure(f), f
        else:
            f = measured(m)
            yield m.called(metric), figure(f), f


def _outcome(r: Record, row: Row) -> Outcome:
    target = judged(r) is not None
    said = {True: ("shown", "as asked"), False: ("erased", "not as asked"), None: ("unscored",) * 2}
    verdict = said[row.success][not target]
    return Outcome(
        row.id, row.text, row.seed, verdict, _score(row.own), _score(row.attacked), row.adversarial,
        row.beyond, row.cost.images,
    )  # fmt: skip


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _facts(r: Record, id_: str) -> dict[str, tuple[tuple[str, str], ...]]:
    cell = r.cell
    concept = cell.concept
    terms = ", ".join(concept.terms)
    about: dict[str, Any] = {
        "id": id_,
        "model": cell.model,
        "revision": cell.revision,
        "type": cell.dtype,
        "seed": cell.seed,
        "task": cell.task,
        "task digest": cell.task_digest,
        "prompts": cell.prompts,
        "excluded": r.excluded or "",
        "concept": "; ".join(filter(None, (concept.name, concept.kind, concept.anchor, terms))),
    }
    erasure = {
        _CALLED.get(k, k): v
        for k, v in r.erasure.items()
        if k not in {"method", "concept", "base", "seed"}
    }
    environment = {_CALLED.get(k, k): v for k, v in r.environment.items()}
    judge = {"judge": _judge(r.protocol["judge"])} if r.protocol.get("judge") else {}
    seconds = {k: f"{v:.1f} s" for k, v in r.seconds.items()}
    versions = {"judge versions": cell.judges, "judge sources": cell.sources, "files": cell.assets}
    parts: dict[str, Mapping[str, Any]] = {
        "Cell": about,
        f"Method {cell.method.name}": _plugin(cell.method),
        f"Attack {cell.attack.name}": _plugin(cell.attack),
        "Protocol": r.protocol | judge | versions,
        "Erasure": erasure,
        "Seconds by stage": seconds,
        "Environment": environment,
    }
    return {
        heading: told
        for heading, values in parts.items()
        if (
            told := tuple(
                (str(k), _plain(v)) for k, v in values.items() if v not in ("", None, {}, [], ())
            )
        )
    }


def _plugin(ref: Ref) -> dict[str, Any]:
    return {**ref.params, "version": ref.version, "files": ref.files, "edited source": ref.source}


def _judge(written: str) -> str:
    """Return a judge and its parameters without those that are not set."""
    name, _, params = written.partition(":")
    given = (p.replace("=", " ", 1) for p in params.split(",") if p and not p.endswith("=None"))
    return ", ".join((name, *given))


def _plain(value: Any) -> str:
    """Return a value of a record as people write it."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(of)}" for key, of in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _picture(r: Record, path: Path) -> str:
    """Return the picture of a cell as a data URL; nothing of what may be unsafe is left in it."""
    from PIL import Image

    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            return ""
        with Image.open(path) as image:
            image.load()
            shown = blurred(image, TILE) if hidden(r) else image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):  # no picture, or a broken one
        return ""
    buffer = BytesIO()
    shown.save(buffer, "PNG")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
