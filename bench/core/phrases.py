"""Sentences that name a concept, and texts as a text encoder reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.core.errors import IncompatibleError
from bench.core.protocols import Model
from bench.core.types import Concept

_FORMS = {
    "object": ("{c}", "a photo of a {c}", "a picture of a {c}", "an image of a {c}"),
    "nsfw": ("{c}",),
    "style": ("{c}", "a painting in the style of {c}", "an artwork by {c}", "a {c} painting"),
}


def article(noun: str) -> str:
    """Return a noun with its article: "an attack"."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def sentences(concept: Concept) -> list[str]:
    """Return sentences with each of a concept's phrases; the first is the phrase alone."""
    return [form.format(c=phrase) for phrase in concept.phrases for form in _FORMS[concept.kind]]


def check_length(model: Model, texts: Iterable[str]) -> None:
    """Check that the text encoder reads texts whole; it would cut the end of a longer one.

    Raises:
        IncompatibleError: A text is too long.
    """
    room = model.pipe.tokenizer.model_max_length - 2  # start and end
    whole = list(texts)
    for text, ids in zip(whole, model.token_ids(whole) if whole else (), strict=True):
        if len(ids) > room:
            raise IncompatibleError(
                f"{text!r} has {len(ids)} tokens: expected at most {room}, or the text encoder cuts it"
            )


def framed(
    tokenizer: Any, ids: Sequence[int], *, padding: int | None = None, length: int | None = None
) -> list[int]:
    """Return ids as the text encoder reads them: start, ids, end, padding.

    Args:
        tokenizer: The tokenizer.
        ids: A text's token ids.
        padding: The id after the end token; by default the tokenizer's, which is the end token again
            except for Stable Diffusion 2.
        length: Number of ids to return; by default as many as the text encoder reads.
    """
    length = length or tokenizer.model_max_length
    pad = tokenizer.pad_token_id if padding is None else padding
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[pad] * length][:length]
