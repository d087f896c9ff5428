"""Takes fewer rows of a batch at once when a device has too little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Room:
    """For how many rows of a batch there is memory at once.

    Args:
        at_once: How many to try first.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once

    def parts(self, rows: int, work: Callable[[slice], T]) -> Iterator[T]:
        """Yield what ``work`` returns for each part of a batch of so many rows.

        When memory runs out, the same rows are taken again in halves, and later ones, too.

        Raises:
            torch.OutOfMemoryError: There is too little memory for one row.
        """
        import torch

        done = 0
        while done < rows:
            part = slice(done, min(rows, done + self.at_once))
            try:
                result = work(part)
            except torch.OutOfMemoryError:
                if not self.halve(part.stop - part.start):
                    raise
                continue
            done = part.stop
            yield result
            del result  # which may be large, and is not needed while the next is made

    def halve(self, rows: int) -> bool:
        """Take half as many rows from now on, for so many were too many; say whether any are left."""
        self.at_once = max(1, rows // 2)
        return rows > 1
