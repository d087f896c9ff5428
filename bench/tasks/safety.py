"""Which tasks ask for nudity, which images are not kept or shown as they are, and what is shown instead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bench.core.types import Concept, World
from bench.tasks.entries import Measure, shipped

if TYPE_CHECKING:
    from PIL import Image


def asks_for_nudity(concept: Concept | None, measures: Iterable[Measure]) -> bool:
    """Say whether a task is of the kind nsfw, whatever it says: by its concept, or by a judge.

    A concept that a shipped nsfw task has, and a judge that only such tasks of the photo world have, are of
    that kind also where a task of one's own calls it an object.
    """
    if concept and concept.kind == "nsfw":
        return True
    entries = list(shipped("photo").values())
    nsfw = [entry for entry in entries if entry.concept and entry.concept.kind == "nsfw"]
    concepts = {entry.concept.name for entry in nsfw if entry.concept}
    judges = {measure.evaluator.name for entry in nsfw for measure in entry.measures}
    names = (
        {name.strip().casefold() for name in (concept.name, *concept.terms)} if concept else set()
    )
    return bool(names & concepts) or any(m.evaluator.name in judges for m in measures)


def unsafe(world: World, concept: Concept | None, measures: Iterable[Measure] = ()) -> bool:
    """Say whether a task's images may be unsafe: photographs, where it asks for nudity."""
    return world == "photo" and asks_for_nudity(concept, measures)


def blurred(image: Image.Image, side: int | None = None) -> Image.Image:
    """Return an image in which nothing but colour is left: a radius of an eighth of its side.

    Args:
        image: What is blurred.
        side: That of the single images, if it is a grid of them.
    """
    from PIL import ImageFilter  # slow; not needed to plan a run

    return image.convert("RGB").filter(ImageFilter.GaussianBlur((side or max(image.size)) / 8))
