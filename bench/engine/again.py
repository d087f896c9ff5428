"""Draws the images of a record again: from what the record says, and from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.core.errors import SpecError
from bench.core.types import Prompt
from bench.engine.erase import Erased, Eraser
from bench.engine.images import Images
from bench.engine.replay import Replay, of_row
from bench.engine.settings import Settings
from bench.models.diffusers import DiffusersModel
from bench.plan.cell import IMAGES, Cell
from bench.plugins.fingerprint import edited
from bench.plugins.registry import load
from bench.report.hidden import hidden
from bench.sources.catalog import revision, settle
from bench.store.record import Record, Row

Picture = Any  # PIL.Image.Image


class Again:
    """Keeps models and images between records.

    An erasure that is in the cache is taken from there; another is computed again.

    Args:
        settings: How.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._eraser = Eraser(settings)
        self._images = Images(settings)

    def original(self, record: Record) -> DiffusersModel:
        """Return a record's base model in the type that is drawn in.

        Raises:
            SpecError: It is not what it was.
        """
        _check_same(record.cell)
        return self._eraser.original(record.cell)

    def erased(self, record: Record) -> Erased:
        """Return a record's erased model, which draws no minors where images may be unsafe.

        Raises:
            SpecError: Model or method are not what they were.
        """
        _check_same(record.cell)
        erased = self._eraser.screened(record.cell, hide=hidden(record))
        self._images.keep_only(erased.key)
        return erased

    def original_images(self, record: Record, rows: Sequence[Row]) -> list[Picture]:
        """Return what the base model draws for these rows."""
        erased = self.erased(record)
        original = replace(self._eraser.unerased(record.cell), unsafe=erased.unsafe)
        return [s.image for s in self._images.make(original, [*map(prompt_of, rows)], "draw")]

    def own_images(self, record: Record, rows: Sequence[Row]) -> list[Picture]:
        """Return what the erased model draws for the prompts of these rows."""
        return [
            s.image for s in self._images.make(self.erased(record), [*map(prompt_of, rows)], "draw")
        ]

    def attacked_images(self, record: Record, rows: Sequence[Row]) -> list[Picture | None]:
        """Return what the erased model draws for what the attack found; ``None`` if that is not kept.

        A prompt, a seed and noise are in the record. An embedding and weights are in the cache only.
        """
        erased = self.erased(record)
        found = {row.id: of_row(prompt_of(row), row) for row in rows if row.beyond in {"", "noise"}}
        others = [prompt_of(row) for row in rows if row.id not in found]
        found |= Replay(self.settings.artifacts, record.cell.attack_key, erased.model).load(others)
        samples = self._images.replay(erased, list(found.values()))
        images = {sample.prompt.id: sample.image for sample in samples}
        return [images.get(row.id) for row in rows]


def prompt_of(row: Row) -> Prompt:
    """Return a row's prompt as it is in its set."""
    return Prompt(row.id, row.text, row.seed, row.guidance)


def _check_same(cell: Cell) -> None:
    """Refuse a record whose model or method is not what it was.

    Raises:
        SpecError: It is not.
    """
    who = f"cell {cell.id}"
    if cell.method.name == IMAGES:
        raise SpecError(f"{who}: its images were made elsewhere and are not kept: nothing to draw")
    settle(cell.model)
    if (got := revision(cell.model, cell.world)) != cell.revision:
        raise SpecError(f"{who}: {cell.model} is at {got}, its record is of {cell.revision}")
    cls = load("methods", cell.method.name)
    told, now = (
        (cell.method.version, cell.method.source),
        (cls.card.version, edited(cls.__module__)),
    )
    if told != now:
        raise SpecError(
            f"{who}: method {cell.method.name} is not the one of its record (version and source "
            f"{told}, here {now}): run the cell again"
        )
