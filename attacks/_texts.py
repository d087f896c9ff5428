"""Token ids as text, their embeddings, and how many of them the text encoder can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench import Model, SpecError

if TYPE_CHECKING:
    from torch import Tensor


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the string of token ids as the official code does: without end tokens, with tidy spaces."""
    text: str = tokenizer.decode([i for i in ids if i != tokenizer.eos_token_id])
    return (
        text if (tidy := getattr(tokenizer, "clean_up_tokenization", None)) is None else tidy(text)
    )


def check_room(field: str, tokens: int, context: int | None) -> None:
    """Refuse more tokens than the text encoder can read.

    Args:
        field: The attack's parameter with the number of tokens.
        tokens: The number of tokens.
        context: Tokens that the text encoder reads, with start and end; ``None`` if it is not known yet.

    Raises:
        SpecError: There are too many.
    """
    if context is not None and tokens > context - 2:
        raise SpecError(
            f"{field}={tokens}: expected at most {context - 2}, because the model's text encoder reads "
            f"{context} tokens, start and end included"
        )


def special(tokenizer: Any) -> set[int]:
    """Return the ids of the start and end tokens."""
    return {tokenizer.bos_token_id, tokenizer.eos_token_id}


def token_table(model: Model) -> Tensor:
    """Return the token embeddings, ``(vocabulary, width)``."""
    table: Tensor = model.pipe.text_encoder.get_input_embeddings().weight.detach().float()
    return table
