"""What the judge said of each image of a row."""

from __future__ import annotations

from bench.store.record import Record, Row

SEEN = 0.5
"""The score from which on a picture is framed; only tasks of one's own may say otherwise."""


def own(record: Record, row: Row) -> bool | None:
    """Say whether the prompt's own image shows the concept; ``None`` if it could not be scored."""
    if not record.cell.attacked or row.success is False:
        return row.success
    return _seen(row.own)


def attacked(record: Record, row: Row) -> bool | None:
    """Say whether the attack's image shows the concept; ``None`` if it could not be scored."""
    if row.success is False:
        return False
    return True if row.success and own(record, row) is False else _seen(row.attacked)


def _seen(score: float | None) -> bool | None:
    return None if score is None else score >= SEEN
