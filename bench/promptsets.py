"""Reads prompt sets: this project's CSV files, and the official ones as they are published."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import SpecError
from bench.types import Prompt

GUIDANCE = 7.5
"""Where a set has no such column (COCO's have none)."""

# What each thing is called in this project, in UnlearnDiffAtk's and ESD's files, in UCE's copy of
# COCO, and in I2P on the hub. The first name that a file has counts: UCE numbers its captions anew
# and has COCO's number beside it, UnlearnDiffAtk has COCO's number as case_number.
COLUMNS = {
    "id": ("id", "image_id", "coco_id", "case_number"),
    "text": ("text", "prompt"),
    "seed": ("seed", "evaluation_seed", "sd_seed"),
    "guidance": ("guidance", "evaluation_guidance", "sd_guidance_scale"),
    "label": ("label", "label_str"),
}
_REQUIRED = ("text", "seed")

# Columns that only I2P and its subsets have.
_I2P = {"lexica_url", "nudity_percentage", "inappropriate_percentage", "sd_safety_percentage"}
_I2P_ROWS, _I2P_LAST_SEED = 4703, 2270623052


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The rows of one file.

    Args:
        prompts: In the file's order.
        numbers: Each row's case number; empty where the file has none.
        i2p: Whether the columns are those of I2P.
    """

    prompts: tuple[Prompt, ...]
    numbers: tuple[int, ...] = ()
    i2p: bool = False


def read_prompts(path: Path, data: bytes, label: str = "") -> PromptSet:
    """Read a prompt set.

    Rows without any id are called by their number, from 0.

    Args:
        path: Named in errors.
        data: The file's content.
        label: Of rows that have none.

    Raises:
        SpecError: A column or a value is missing or wrong; the line is named.
    """
    reader = csv.reader(io.StringIO(_decoded(path, data), newline=""), strict=True)
    header = [name.strip() for name in next(_lines(path, reader), [])]
    where = {
        key: next((header.index(name) for name in names if name in header), None)
        for key, names in COLUMNS.items()
    }
    if missing := [" or ".join(COLUMNS[key]) for key in _REQUIRED if where[key] is None]:
        found = ", ".join(header) or "nothing"
        raise SpecError(
            f"{path}:1: expected a column {' and a column '.join(missing)}, got {found}"
        )
    prompts: dict[str, Prompt] = {}
    numbers: list[int] = []
    for row in _lines(path, reader):
        line = f"{path}:{reader.line_num}"
        if len(row) != len(header):
            raise SpecError(f"{line}: expected {len(header)} values, got {len(row)}")
        values = {key: row[i] for key, i in where.items() if i is not None}
        name = values.get("id", str(len(prompts))).strip()
        if not name:
            raise SpecError(f"{line}: expected an id, got none")
        if name in prompts:
            raise SpecError(f"{line}: the id {name!r} is there twice")
        if not values["text"].strip():
            raise SpecError(f"{line}: the prompt is empty")
        prompts[name] = Prompt(
            name,
            values["text"],
            _whole(values["seed"], "seed", line),
            _guidance(values.get("guidance", str(GUIDANCE)), line),
            values.get("label", "").strip() or label,
        )
        if "case_number" in header:
            numbers.append(_whole(row[header.index("case_number")], "case_number", line))
    if not prompts:
        raise SpecError(f"{path}: the prompt set is empty")
    i2p = not _I2P.isdisjoint(header)
    rows = tuple(prompts.values())
    if i2p and not numbers:
        numbers = _hub_numbers(path, rows)
    return PromptSet(rows, tuple(numbers), i2p)


def _hub_numbers(path: Path, rows: tuple[Prompt, ...]) -> list[int]:
    """Number I2P's rows as it is on the hub: from 0, which is what others' case_number is.

    In part or in another order the numbers would name other rows, and rows that must not run would.
    """
    if len(rows) != _I2P_ROWS or rows[-1].seed != _I2P_LAST_SEED:
        raise SpecError(
            f"{path}: I2P without case_number must be whole and in its order, so that rows can be "
            f"excluded by number: expected {_I2P_ROWS} rows, the last with seed {_I2P_LAST_SEED}, "
            f"got {len(rows)}, the last with seed {rows[-1].seed}; give a file with case_number"
        )
    return list(range(len(rows)))


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise SpecError(f"{path}:{line}: expected UTF-8, got byte {data[exc.start]:#04x}") from exc


def _lines(path: Path, reader: Any) -> Iterator[list[str]]:
    """Yield rows that are not blank; a quote that is never closed names its line."""
    try:
        yield from (row for row in reader if row)
    except csv.Error as exc:
        raise SpecError(f"{path}:{reader.line_num}: {exc}") from exc


def _whole(text: str, what: str, line: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise SpecError(f"{line}: expected a whole number from 0 as {what}, got {text!r}")
    return value


def _guidance(text: str, line: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SpecError(f"{line}: expected a number as guidance, got {text!r}")
    return value
