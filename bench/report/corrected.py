"""Rates corrected for what is known of the judge: how often it sees what is there, and what is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bench.errors import AssetError, BenchError, SpecError, StoreError
from bench.plugins.registry import Ref
from bench.report.axes import Group, grouped
from bench.report.frame import Figure, Line, Table, measured
from bench.report.statistics import Share, corrected
from bench.report.tables import CER, by_cell, cer_figure, judged, laid_out, roles
from bench.sources.catalog import EMOJI_WEIGHTS
from bench.store.metrics import Measurement, complement, rate
from bench.store.record import Record
from bench.tasks.lookup import find

FILE = "sensitivity.json"
_FORM = '{"sensitivity": {"k": 97, "n": 100}, "specificity": {"k": 198, "n": 200}}'


@dataclass(frozen=True, slots=True)
class _Counted:
    k: int
    n: int


@dataclass(frozen=True, slots=True)
class _File:
    sensitivity: _Counted
    specificity: _Counted


@dataclass(frozen=True, slots=True)
class Validity:
    """What is known of a judge.

    Args:
        sensitivity: Of images with the concept, those in which the judge sees it.
        specificity: Of images without it, those in which the judge does not.
    """

    sensitivity: Share
    specificity: Share


def read_validity(path: Path) -> Validity:
    """Read what was measured of a judge: a JSON file with ``k`` of ``n`` for both shares.

    Raises:
        StoreError: The file cannot be read, or is of another form.
    """
    try:
        said = TypeAdapter(_File).validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else f"expected {_FORM}"
        raise StoreError(f"{path} cannot be read as what is known of a judge: {why}") from exc
    found = Validity(*(Share(s.k, s.n) for s in (said.sensitivity, said.specificity)))
    try:
        corrected(Measurement(0.5, 2), found.sensitivity, found.specificity)
    except StoreError as exc:
        raise StoreError(f"{path}: {exc}") from exc
    return found


def judge_of(r: Record) -> str:
    """Return the name of the evaluator that decided success; empty if nothing says it."""
    if said := r.protocol.get("judge"):
        return Ref.parse(said).name
    try:
        return str(find(r.cell.task, r.cell.world).says["measures"][0]["evaluator"])
    except (BenchError, KeyError):
        return ""


def validities(records: Iterable[Record], source: str) -> Mapping[str, Validity]:
    """Return what is known of the judges of records, by name.

    Args:
        records: Of target tasks.
        source: A file for their only judge; or "auto" for what ships beside each judge of the emoji world.

    Raises:
        SpecError: A file is given, but the records have several judges.
        AssetError: Nothing is known of any of them.
    """
    names = dict.fromkeys(judge_of(r) for r in records if judged(r))
    if source != "auto":
        if len(names) > 1:
            raise SpecError(
                f"--corrected {source}: expected records of one judge, got {', '.join(names)}; "
                "choose their tasks with --task"
            )
        return dict.fromkeys(names, read_validity(Path(source)))
    paths = {name: path for name in names if (path := shipped(name)).is_file()}
    if not paths:
        raise AssetError(
            f"--corrected auto: nothing is known of the judges {', '.join(names)}: there is no {FILE} "
            f"beside their weights; give a file, --corrected FILE.json, with {_FORM}"
        )
    return {name: read_validity(path) for name, path in paths.items()}


def shipped(judge: str) -> Path:
    """Return where the emoji world keeps what is known of a judge; there may be no such file."""
    return EMOJI_WEIGHTS / "judges" / judge.removeprefix("emoji-") / FILE


def corrected_tables(records: Iterable[Record], source: str) -> list[Table]:
    """Lay out concept erasing rates beside the same corrected for the judge, and what is known of judges.

    Args:
        records: Any; those of target tasks are shown.
        source: As for :func:`validities`.
    """
    ran = [r for r in roles(records)[0] if r.status == "ok" and judged(r)]
    known = validities(ran, source)

    def figures(g: Group) -> Iterable[Figure]:
        yield cer_figure(g.first, None)
        judge = known.get(judge_of(g.first))
        asr = g.first.measurements[judged(g.first) or ""]
        right = corrected(asr, judge.sensitivity, judge.specificity) if judge else None
        yield measured(complement(right)) if right else Figure(word="unknown")

    rates = laid_out(
        "Concept erasing rate, corrected for the judge",
        ("task", "method", "attack"),
        by_cell(ran),
        grouped(ran, across=()),
        ("CER", "CER, corrected"),
        figures,
        legend=f"{CER}; corrected: what a judge without errors would find (Rogan & Gladen; interval of "
        "Lang & Reiczigel, which holds the judge's own N). It takes the judge to err as often as on the "
        "images that it was measured on. An attack that stops when the judge says yes finds more of its "
        "errors: compare with --floors. unknown: nothing is known of the judge",
        records=ran,
    )
    judges = Table(
        "What is known of the judges",
        ("judge",),
        ("sensitivity", "of", "specificity", "of "),
        tuple(Line((name or "?",), tuple(_shares(known[name]))) for name in sorted(known)),
        "sensitivity: of images with the concept, the share in which the judge sees it; specificity: of "
        "images without it, the share in which it does not; with 95 % Wilson intervals",
    )
    return [rates, judges]


def _shares(judge: Validity) -> Iterable[Figure]:
    for share in (judge.sensitivity, judge.specificity):
        yield measured(rate([True] * share.k + [False] * (share.n - share.k)))
        yield Figure(share.n)
