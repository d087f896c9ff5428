"""Token ids as text, and how many of them a text may have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import SpecError


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the string of token ids as the official code does: end tokens left out, spaces tidied."""
    text: str = tokenizer.decode([i for i in ids if i != tokenizer.eos_token_id])
    return (
        text if (tidy := getattr(tokenizer, "clean_up_tokenization", None)) is None else tidy(text)
    )


def check_room(field: str, tokens: int, context: int | None) -> None:
    """Refuse more tokens than the text encoder has room for.

    Args:
        field: The attack's parameter that says how many tokens.
        tokens: How many.
        context: Tokens that the text encoder reads, start and end included; ``None``: not known yet.
    """
    if context is not None and tokens > context - 2:
        raise SpecError(
            f"{field}={tokens}: expected at most {context - 2}, because the model's text encoder reads "
            f"{context} tokens, start and end included"
        )
