"""Rates corrected for what is known of the judge: how often it sees what is there, and what is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from bench.core.errors import AssetError, BenchError, SpecError, StoreError
from bench.plugins.registry import Ref
from bench.report.frame import Figure, Line, Table, measured
from bench.report.statistics import Difference, Share, corrected
from bench.sources.catalog import EMOJI_WEIGHTS
from bench.store.metrics import Measurement, rate
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

    @property
    def youden(self) -> float:
        """By how much a difference of true rates is larger than that of verdicts: as its inverse."""
        return sum(share.k / share.n for share in (self.sensitivity, self.specificity)) - 1


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


@dataclass(frozen=True, slots=True)
class Judges:
    """What is made of judges' verdicts in tables.

    Args:
        known: What is known of each judge, by name; ``None`` leaves rates as they are.
        unknown: Judges whose rates cannot be corrected.
    """

    known: Mapping[str, Validity] | None = None
    unknown: tuple[str, ...] = ()

    @property
    def cer(self) -> str:
        """What a column of concept erasing rates is called."""
        return "CER" if self.known is None else "corrected CER"

    @property
    def legend(self) -> str:
        """What concept erasing rates are."""
        if self.known is None:
            return "CER = 1 - ASR with its 95 % Wilson interval"
        return (
            "CER = 1 - ASR, corrected for the judge's errors, with its 95 % interval; unknown: nothing is "
            "known of the judge; tests and ties are of the verdicts as they are"
        )

    def rate(self, r: Record, m: Measurement) -> Measurement | None:
        """Return a rate that a record's judge decided as tables show it; ``None`` if that is not known."""
        if self.known is None or m.value is None:
            return m
        judge = self.known.get(judge_of(r))
        return corrected(m, judge.sensitivity, judge.specificity) if judge else None

    def difference(self, r: Record, d: Difference | None) -> Difference | None:
        """Return a difference of two such rates; its interval takes the judge's shares for exact."""
        if self.known is None or d is None:
            return d
        judge = self.known.get(judge_of(r))
        if judge is None:
            return None
        value, low, high = (max(-1.0, min(1.0, x / judge.youden)) for x in (d.value, d.low, d.high))
        return replace(d, value=value, low=low, high=high)

    def margin(self, r: Record, margin: float) -> float:
        """Return how large a difference of verdicts is where the corrected one is of this size."""
        judge = self.known.get(judge_of(r)) if self.known else None
        return margin * judge.youden if judge else margin


AS_SEEN = Judges()


def judges_of(records: Iterable[Record], source: str) -> Judges:
    """Return what is known of the judges of records.

    Args:
        records: Of rates that a judge decides.
        source: A file for their only judge; "auto" for what ships beside each judge of the emoji world; or
            empty, to leave rates as they are.

    Raises:
        SpecError: A file is given, but the records have several judges.
        AssetError: Nothing is known of any of them.
    """
    if not source:
        return AS_SEEN
    names = tuple(dict.fromkeys(map(judge_of, records)))
    if source != "auto":
        if len(names) > 1:
            raise SpecError(
                f"--corrected {source}: expected records of one judge, got {', '.join(names)}; "
                "choose their tasks with --task"
            )
        return Judges(dict.fromkeys(names, read_validity(Path(source))))
    paths = {name: path for name in names if (path := shipped(name)).is_file()}
    if not paths:
        raise AssetError(
            f"--corrected auto: nothing is known of the judges {', '.join(names)}: there is no {FILE} "
            f"beside their weights; give a file, --corrected FILE.json, with {_FORM}"
        )
    known = {name: read_validity(path) for name, path in paths.items()}
    return Judges(known, tuple(name for name in names if name not in known))


def shipped(judge: str) -> Path:
    """Return where the emoji world keeps what is known of a judge; there may be no such file."""
    return EMOJI_WEIGHTS / "judges" / judge.removeprefix("emoji-") / FILE


def judges_table(judges: Judges) -> Table:
    """Lay out what is known of judges, and how rates are corrected for it."""
    known = judges.known or {}
    lines = [Line((name or "?",), tuple(_shares(known[name]))) for name in sorted(known)]
    lines += [
        Line((name or "?",), (Figure(word="unknown"), None, Figure(word="unknown"), None))
        for name in judges.unknown
    ]
    return Table(
        "What is known of the judges",
        ("judge",),
        ("sensitivity", "of", "specificity", "of "),
        tuple(lines),
        "sensitivity: of images with the concept, the share in which the judge sees it; specificity: of "
        "images without it, the share in which it does not; with 95 % Wilson intervals. Corrected rates "
        "are what a judge without errors would find (Rogan & Gladen; interval of Lang & Reiczigel, which "
        "holds the judge's own N), if the judge errs as often as on the images that it was measured on. An "
        "attack that stops when the judge says yes finds more of its errors: compare with --floors. "
        "Differences are divided by sensitivity + specificity - 1",
    )


def _shares(judge: Validity) -> Iterable[Figure]:
    for share in (judge.sensitivity, judge.specificity):
        yield measured(rate([True] * share.k + [False] * (share.n - share.k)))
        yield Figure(share.n)
