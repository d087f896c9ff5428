"""What cells will cost, learnt from cells that are finished.

A cell's time has three stages: erasing, once for each erasure; attacking, by prompts; drawing and judging,
by images, of which those of one model and task are drawn once. Each is looked up among finished cells on
the same model and kind of device, the nearest first; what was found is named. A floor that was never run
costs what its images do, and texts that another cell's attack found cost nothing to attack with. Where no
cell of one's own is that near, a figure that ships may be: ``typical.csv``, made from committed records by

    python -m bench.report.costs results/reference
"""

from __future__ import annotations

import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Literal, cast

from bench.core.devices import AUTO
from bench.core.digest import digest
from bench.core.errors import StoreError
from bench.plan.cell import REPLAYED, Cell
from bench.plan.floors import FLOORS
from bench.store.record import Record
from bench.store.store import Store

Stage = Literal["erase", "attack", "draw"]
TYPICAL = Path(__file__).with_name("typical.csv")
_DRAWN = 1e-3  # seconds for an image; less is an image that was there


@dataclass(frozen=True, slots=True)
class Traits:
    """What a cell's time may depend on."""

    device: str
    model: str
    dtype: str
    erased: str  # "base" where nothing is erased: attacks on it are over at once
    method: str
    settings: str
    kind: str
    concept: str
    task: str
    attack: str
    attack_settings: str


_WHERE = ("device", "model")
_NEAREST: dict[Stage, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "erase": (
        ("same", ("method", "settings", "concept")),
        ("kind", ("method", "settings", "kind")),
        ("method", ("method",)),
    ),
    "attack": (
        ("same", ("dtype", "method", "settings", "attack", "attack_settings", "task")),
        ("method", ("dtype", "method", "attack", "attack_settings", "kind")),
        ("task", ("dtype", "erased", "attack", "attack_settings", "task")),
        ("kind", ("dtype", "erased", "attack", "attack_settings", "kind")),
        ("attack", ("erased", "attack")),
    ),
    "draw": (
        ("same", ("dtype", "method", "task")),
        ("method", ("dtype", "method")),
        ("model", ("dtype",)),
    ),
}
"""By stage: which traits must be equal, the nearest first, and a word for what is found so."""
_FARTHEST = ("", "same", "method", "task", "kind", "attack", "images", "model", "?")


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a cell will cost.

    Args:
        stages: Seconds by stage; a stage that nothing is known of is left out.
        like: Which finished cells that is learnt from: the "same" with other seeds or prompts, others of
            the same "method", "task", "kind" of concept, "attack" or "model", or the "images" that a floor
            draws; "?": a stage is unknown.
    """

    stages: dict[Stage, float]
    like: str

    @property
    def seconds(self) -> float | None:
        """All of it; ``None`` if a stage is unknown."""
        return None if self.like == "?" else sum(self.stages.values())


class Forecast:
    """Says what cells will cost.

    Args:
        device: Where they will run, as ``--device`` says it.
        erased: Says whether an erasure is kept already, by its key.
    """

    def __init__(self, device: str, erased: Callable[[str], bool] = lambda key: False) -> None:
        self.device = _device(device)
        self._known: dict[tuple[str, ...], list[float]] = defaultdict(list)
        self._erased, self._there = erased, set[str]()
        self.cells = 0

    def learn(self, record: Record) -> None:
        """Take what a finished cell cost, and note what of it others need not do again."""
        if record.status == "ok":
            self.cells += 1
            for stage, traits, seconds in measured(record, self._there):
                self._add("", stage, traits, seconds)
            self._begin(record.cell)

    def learn_typical(self) -> None:
        """Take the figures that ship."""
        for stage, traits, seconds in _typical():
            self._add("typical", stage, traits, seconds)

    def of(self, cell: Cell) -> Estimate:
        """Return what a cell costs after all that was learnt and counted."""
        images = {"attack": cell.prompts if cell.attacked else 0, "own": cell.prompts}
        if _images(cell) in self._there:
            images["own"] = 0
        attacked = cell.attacked and cell.attack.name not in REPLAYED
        attacked = attacked and _attack(cell) not in self._there
        amount: dict[Stage, int] = {
            "erase": int(cell.erase_key not in self._there and not self._erased(cell.erase_key)),
            "attack": cell.prompts if attacked else 0,
            "draw": sum(images.values()),
        }
        if cell.method.name == "none":
            amount["erase"] = 0
        stages: dict[Stage, float] = {}
        far = ""
        for stage, n in amount.items():
            if n:
                each, like = self.rate(stage, cell)
                far = max(far, like, key=_FARTHEST.index)
                stages |= {} if each is None else {stage: n * each}
        return Estimate(stages, far or "same")

    def count(self, cell: Cell) -> Estimate:
        """Return what a cell costs, and take it as done for those that follow."""
        found = self.of(cell)
        self._begin(cell)
        return found

    def rate(self, stage: Stage, cell: Cell) -> tuple[float | None, str]:
        """Return the seconds of an erasure, of a prompt's attack or of an image, and from what."""
        traits = traits_of(cell, self.device)
        middle = median if stage == "draw" else fmean
        floor = stage == "attack" and cell.attack.name in FLOORS
        for like, names in _NEAREST[stage]:
            if floor and like == "attack":  # with as many images as any other floor
                break
            for source in ("", "typical"):
                if found := self._known.get(_place(source, stage, names, traits)):
                    return middle(found), like
        return self._by_images(cell) if floor else (None, "?")

    def _by_images(self, cell: Cell) -> tuple[float | None, str]:
        """Return what the images of a floor cost: at most all that it may draw, of a base model one."""
        each, like = self.rate("draw", cell)
        draws = cell.attack.params.get("draws")
        if each is None or not isinstance(draws, int):
            return None, "?"
        return each * (1 if cell.method.name == "none" else draws), max(
            "images", like, key=_FARTHEST.index
        )

    def _add(self, source: str, stage: Stage, traits: Traits, seconds: float) -> None:
        for _, names in _NEAREST[stage]:
            self._known[_place(source, stage, names, traits)].append(seconds)

    def _begin(self, cell: Cell) -> None:
        """Note an erasure, images and what an attack finds as there."""
        self._there |= {cell.erase_key, _images(cell), _attack(cell)}


def forecast(device: str, records: Iterable[Record], erased: Callable[[str], bool]) -> Forecast:
    """Return a forecast from finished cells, and where those say nothing from typical figures.

    Where the device is "auto", it is for the kind on which most of the cells ran.
    """
    known = list(records)
    if device == AUTO:
        kinds = Counter(r.environment.get("device", "cpu") for r in known)
        device = max(kinds, key=lambda kind: kinds[kind], default="cpu")
    found = Forecast(device, erased)
    found.learn_typical()
    for record in known:
        found.learn(record)
    return found


def finished(store: Store) -> list[Record]:
    """Return the records of a folder, if it can be read."""
    try:
        return store.load()[0]
    except StoreError:  # there is none yet, or it is at odds with itself: whoever needs it says so
        return []


def measured(record: Record, told: Container[str] = ()) -> Iterator[tuple[Stage, Traits, float]]:
    """Yield the seconds that a finished cell tells of: of its erasure, a prompt's attack, an image.

    Args:
        record: Of the cell.
        told: Erasures and attacks, by key, that were told of before: others need not do them again.
    """
    cell, spent = record.cell, record.seconds
    traits = traits_of(cell, record.environment.get("device", "cpu"))
    if cell.erase_key not in told and cell.method.name != "none" and "seconds" in record.erasure:
        yield "erase", traits, float(record.erasure["seconds"])
    if cell.attacked and "attack" in spent and _attack(cell) not in told:
        yield "attack", traits, spent["attack"] / cell.prompts
    drawn = (spent.get("generate", 0.0) + spent.get("judge", 0.0)) / cell.prompts
    if spent.get("generate", 0.0) / cell.prompts >= _DRAWN:
        yield "draw", traits, drawn


def traits_of(cell: Cell, device: str) -> Traits:
    """Return what a cell's time may depend on."""
    method, attack = cell.method, cell.attack
    return Traits(
        _device(device),
        cell.model,
        cell.dtype,
        "base" if method.name == "none" else "erased",
        method.name,
        digest(method.params)[:8],
        cell.concept.kind,
        cell.concept.name,
        cell.task,
        attack.name,
        digest(attack.params)[:8],
    )


def spoken(seconds: float) -> str:
    """Return a length of time in words: ``48 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _device(name: str) -> str:
    """Return the kind of a device: a record has a GPU's name, an option ``cuda:1``."""
    return name if name in {"cpu", "mps"} else "cuda"


def _attack(cell: Cell) -> str:
    """Name what an attack finds for a cell's prompts: some attacks find the same with all seeds."""
    return digest([cell.attack_key, cell.prompts])


def _images(cell: Cell) -> str:
    """Name the images of a cell's own prompts: a base model's are there whatever was to be erased."""
    model = [cell.model, cell.revision] if cell.method.name == "none" else [cell.erase_key]
    return digest([*model, cell.dtype, cell.task_digest, cell.prompts])


def _place(source: str, stage: Stage, names: tuple[str, ...], traits: Traits) -> tuple[str, ...]:
    return source, stage, *names, *(getattr(traits, name) for name in (*_WHERE, *names))


@cache
def _typical() -> tuple[tuple[Stage, Traits, float], ...]:
    names = [field.name for field in fields(Traits)]
    with TYPICAL.open(encoding="utf-8", newline="") as stream:
        return tuple(
            (cast("Stage", row["stage"]), Traits(*(row[n] for n in names)), float(row["seconds"]))
            for row in csv.DictReader(stream)
        )


def main(folders: Iterable[str]) -> None:
    """Write the typical figures of some folders of records."""
    told: dict[tuple[Stage, Traits], list[float]] = defaultdict(list)
    there: set[str] = set()
    for folder in folders:
        for record in finished(Store(Path(folder))):
            for stage, traits, seconds in measured(record, there):
                told[stage, _relevant(stage, traits)].append(seconds)
            there |= {record.cell.erase_key, _attack(record.cell)}
    rows = [
        {"stage": stage, **asdict(traits), "seconds": f"{fmean(seconds):.4g}"}
        for (stage, traits), seconds in told.items()
    ]
    names = ["stage", *(field.name for field in fields(Traits)), "seconds"]
    with TYPICAL.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: tuple(map(str, row.values()))))


def _relevant(stage: Stage, traits: Traits) -> Traits:
    """Return traits without those that a stage does not depend on."""
    used = {*_WHERE, *(name for _, names in _NEAREST[stage] for name in names)}
    return replace(traits, **{f.name: "" for f in fields(Traits) if f.name not in used})


if __name__ == "__main__":
    main(sys.argv[1:])
