"""Which words of a prompt an attack wrote."""

from __future__ import annotations

from difflib import SequenceMatcher

Words = list[tuple[str, bool]]
"""The words of a text, and of each whether it is marked."""


def marked(before: str, after: str) -> Words:
    """Return the words of a text; those that it does not share with the text before are marked."""
    old, new = before.split(), after.split()
    same: set[int] = set()
    for block in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        same.update(range(block.b, block.b + block.size))
    return [(word, i not in same) for i, word in enumerate(new)]
