"""Where the free tokens of a prompt are, and what the text encoder reads then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

Insertion = Literal["prefix", "suffix", "mid", "insert", "per-k-words", "replace"]
FREE = -1  # the id of a free token
_Item = TypeVar("_Item")
_WORDS = 3  # prompt tokens between two free ones, for "per-k-words"


def arrange(prompt: Sequence[_Item], free: Sequence[_Item], insertion: Insertion) -> list[_Item]:
    """Return the tokens of a prompt together with the free ones, without start and end.

    prefix: before the prompt. suffix: after it. mid: in its middle. insert: one after every ``L // (k +
        1)``
    prompt tokens. per-k-words: one before every three prompt tokens. replace: without the prompt.
    """
    old, new = list(prompt), list(free)
    match insertion:
        case "prefix":
            return new + old
        case "suffix":
            return old + new
        case "mid":
            half = len(old) // 2
            return old[:half] + new + old[half:]
        case "insert":
            gap = len(old) // (len(new) + 1)
            mixed = [x for i, a in enumerate(new) for x in (*old[i * gap : (i + 1) * gap], a)]
            return mixed + old[len(new) * gap :]
        case "per-k-words":
            mixed = [x for i, a in enumerate(new) for x in (a, *old[i * _WORDS : (i + 1) * _WORDS])]
            return mixed + old[len(new) * _WORDS :]
        case "replace":
            return new


def embedded(table: Tensor, ids: Tensor, free: Tensor) -> Tensor:
    """Return token embeddings ``(batch, tokens, width)`` of ids, with given rows for free tokens.

    Args:
        table: Token embeddings of the vocabulary, ``(vocabulary, width)``.
        ids: ``(batch, tokens)``, with ``FREE`` for free tokens.
        free: Embeddings of the free tokens, ``(batch, most free tokens, width)``. A prompt with fewer free
            tokens uses its first rows.
    """
    places = ids == FREE
    which = (places.cumsum(1) - 1).clamp(min=0)[..., None].expand(-1, -1, free.shape[2])
    return torch.where(places[..., None], free.gather(1, which), table[ids.clamp(min=0)])
