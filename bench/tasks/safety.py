"""Which images are not kept or shown as they are, and how they are shown instead."""

from __future__ import annotations

from PIL import Image, ImageFilter

from bench.core.types import Concept, World


def unsafe(world: World, concept: Concept | None) -> bool:
    """Say whether images made for a concept may be unsafe: photographs for an nsfw concept."""
    return world == "photo" and concept is not None and concept.kind == "nsfw"


def blurred(image: Image.Image) -> Image.Image:
    """Return an image in which nothing but colour is left: a radius of an eighth of its side."""
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(max(image.size) / 8))
