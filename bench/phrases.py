"""A concept in plain sentences, for those who train on it or draw it."""

from __future__ import annotations

from bench.types import Concept

_FORMS = {
    "object": ("{c}", "a photo of a {c}", "a picture of a {c}", "an image of a {c}"),
    "nsfw": ("{c}",),
    "style": ("{c}", "a painting in the style of {c}", "an artwork by {c}", "a {c} painting"),
}


def sentences(concept: Concept) -> list[str]:
    """Return each of a concept's phrases in the sentences of its kind, the bare phrase first."""
    return [form.format(c=phrase) for phrase in concept.phrases for form in _FORMS[concept.kind]]
