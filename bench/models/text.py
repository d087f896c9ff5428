"""Text as the published tokenisation of CLIP reads it."""

from __future__ import annotations

from collections.abc import Sequence


def cleaned(texts: Sequence[str]) -> list[str]:
    """Return texts with what encodings and typography did to them undone, by ftfy.

    CLIP's tokenizer did so in its first code, and in transformers before version 5: curly quotes become
    straight, full-width letters plain, HTML entities characters.
    """
    import ftfy

    return [ftfy.fix_text(text) for text in texts]
