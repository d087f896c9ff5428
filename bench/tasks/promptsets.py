"""Reads prompt sets: this project's CSV files, and other people's as they are published.

A file has a header line, which names its columns, or is a list without one: one prompt per line. Columns
are known by the names of :data:`COLUMNS`. What a file does not say follows from these rules:

* without ids, a row is called by its number, from 0;
* without seeds, a row's seed is its number, from 0, plus the run's ``--seed``;
* without guidance, it is 7.5;
* a column without a name, right of the prompts and of whole numbers, holds seeds.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.core.errors import SpecError
from bench.core.types import Prompt

GUIDANCE = 7.5
"""Where a set has no such column (COCO's have none)."""

MOST_GUIDANCE = 100.0
LAST_SEED = 2**63 - 1

ADVERSARIAL = ("adversarial", "adv_prompt", "adversarial_prompt", "sensitive prompt")
"""What attacked texts are called: by this project, MMA-Diffusion and P4D, Ring-A-Bell and RECE."""

COLUMNS = {
    "id": ("id", "image_id", "coco_id", "case_number"),
    "text": ("text", "prompt", *ADVERSARIAL),
    "seed": ("seed", "evaluation_seed", "sd_seed"),
    "guidance": ("guidance", "evaluation_guidance", "sd_guidance_scale"),
    "label": (
        "label", "label_str", "class", "artist", "artists", "concept", "target", "profession", "type",
    ),
}  # fmt: skip
"""What each thing is called: by this project, in UnlearnDiffAtk's and ESD's files, in UCE's, ConceptPrune's
and Six-CD's, and in I2P on the hub.

The first name that a file has counts: UCE numbers its captions anew and has COCO's number beside it,
UnlearnDiffAtk has COCO's number as case_number. Of texts, one that has two is asked which.
"""

# Columns that only I2P and its subsets have; of the others two, for each is a common word.
_I2P = {
    "lexica_url", "nudity_percentage", "inappropriate_percentage", "sd_safety_percentage",
    "q16_percentage", "prompt_toxicity",
}  # fmt: skip
_I2P_TOO = {
    "categories", "hard", "sd_seed", "sd_guidance_scale", "sd_image_width", "sd_image_height", "sd_model",
}  # fmt: skip
_I2P_ROWS, _I2P_LAST_SEED = 4703, 2270623052


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The rows of one file.

    Args:
        prompts: In the file's order; the text of a row may be empty.
        numbers: Each row's case number; empty where the file has none.
        i2p: Whether the columns are those of I2P.
        labels: Name of the column that says what each image should show; empty where there is none.
        seeded: Whether the file has seeds.
    """

    prompts: tuple[Prompt, ...]
    numbers: tuple[int, ...] = ()
    i2p: bool = False
    labels: str = ""
    seeded: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A file's cells, as text.

    Args:
        path: Named in errors.
        names: Each column's name; all empty in a list without a header.
        rows: A value for each column.
        lines: The line on which each row ends, from 1.
        columns: Which column holds what, by the keys of :data:`COLUMNS`.
    """

    path: Path
    names: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]
    columns: Mapping[str, int] = field(default_factory=dict)

    def where(self, row: int) -> str:
        """Return a row's file and line, for an error."""
        return f"{self.path}:{self.lines[row]}"

    def values(self, row: int) -> dict[str, str]:
        """Return what is known of a row, by the keys of :data:`COLUMNS`."""
        return {key: self.rows[row][i] for key, i in self.columns.items()}

    def seed(self, row: int, column: int | None = None) -> int | None:
        """Return a row's seed, if the file has one; of a column, if it is not the known one."""
        place = self.columns.get("seed") if column is None else column
        return None if place is None else whole(self.rows[row][place], "seed", self.where(row))

    def guidance(self, row: int) -> float | None:
        """Return a row's scale of guidance, if the file has one."""
        place = self.columns.get("guidance")
        return None if place is None else scale(self.rows[row][place], self.where(row))

    def named(self, name: str) -> int | None:
        """Return the place of a column."""
        return next(
            (i for i, known in enumerate(self.names) if _plain(known) == _plain(name)), None
        )


def split_column(path: Path) -> tuple[Path, str]:
    """Split ``FILE:COLUMN``; the longest name that is a file is the file.

    Raises:
        SpecError: There is a file, but no column behind the colon.
    """
    text = file = str(path)
    while ":" in file and not _there(Path(file)):
        file = file.rpartition(":")[0]
    if not _there(Path(file)) or file == text:
        return path, ""
    if column := text[len(file) + 1 :].strip():
        return Path(file), column
    raise SpecError(f"{text}: expected FILE or FILE:COLUMN, got no column behind the colon")


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def read_prompts(
    path: Path, data: bytes, label: str = "", *, column: str = "", seed: int = 0
) -> PromptSet:
    """Read a prompt set.

    Args:
        path: Named in errors.
        data: The file's content.
        label: Of rows that have none.
        column: Name of the column of prompts; by default the one that is known.
        seed: What a row's number is added to where the file has no seeds.

    Raises:
        SpecError: A column or a value is missing or wrong; the line is named.
    """
    table = read_table(path, data, column=column)
    case = table.named("case_number")
    prompts: dict[str, Prompt] = {}
    numbers: list[int] = []
    for i in range(len(table.rows)):
        line, values = table.where(i), table.values(i)
        name = values.get("id", str(i)).strip()
        if not name:
            raise SpecError(f"{line}: expected an id, got none")
        if name in prompts:
            raise SpecError(f"{line}: the id {shown(name)} is there twice")
        own, guidance = table.seed(i), table.guidance(i)
        prompts[name] = Prompt(
            name,
            values["text"],
            whole(str(seed + i), "seed", line) if own is None else own,
            GUIDANCE if guidance is None else guidance,
            values.get("label", "").strip() or label,
        )
        if case is not None:
            numbers.append(whole(table.rows[i][case], "case_number", line))
    names = set(map(_plain, table.names))
    i2p = bool(names & _spaced(_I2P)) or len(names & _spaced(_I2P_TOO)) > 1
    rows = tuple(prompts.values())
    if i2p and not numbers:
        numbers = _hub_numbers(path, rows)
    labels = table.names[table.columns["label"]] if "label" in table.columns else ""
    return PromptSet(rows, tuple(numbers), i2p, labels, "seed" in table.columns)


def read_table(
    path: Path, data: bytes, *, column: str = "", texts: Sequence[str] | None = None
) -> Table:
    """Read a file's cells and say which column holds what.

    Separators are commas, tabs or semicolons.

    Args:
        path: Named in errors.
        data: The file's content: UTF-8, or UTF-16 with its mark.
        column: Name of the column of prompts.
        texts: Names of columns of prompts of which the first counts; by default those of :data:`COLUMNS`,
            and a file with two of them is refused.

    Raises:
        SpecError: The file is no table, has no column of prompts, has two, or has no rows.
    """
    content = _decoded(path, data)
    wanted = {_plain(column)} if column else _spaced(texts or COLUMNS["text"])
    for separator in ",\t;":
        names = _first(content, separator)
        if wanted & set(map(_plain, names)):
            return _with_header(path, content, separator, column, texts)
    if _is_json(content):
        raise SpecError(
            f"{path}: expected a CSV file or one prompt per line, got JSON: write it as a CSV file with "
            "a column prompt"
        )
    names = [name for name in _first(content, ",") if name]
    if column or not _is_list(path, names):
        known = [shown(column)] if column else texts or ["text", "prompt"]
        advice = (
            "; say which column holds the prompts with FILE:COLUMN, or call a file .txt that has a "
            "prompt a line and no header"
        )
        raise SpecError(
            f"{path}:1: expected a column {' or '.join(known)}, got {_listed(names)}"
            + (advice if not (column or texts) else "")
        )
    for n, line in enumerate(_split(content)[:20], 1):
        if any(wanted & set(map(_plain, _cells(line, separator))) for separator in ",\t;"):
            raise SpecError(f"{path}:{n}: looks like the header: take away the lines above it")
    return _without_header(path, content)


def _with_header(
    path: Path, content: str, separator: str, column: str, texts: Sequence[str] | None
) -> Table:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    lines = _lines(path, reader)
    names = [name.strip() for name in next(lines)]
    rows, ends = [], []
    for row in lines:
        rows.append(row)
        ends.append(reader.line_num)
    seeded = any(_plain(name) in _spaced(COLUMNS["seed"]) for name in names)
    if rows and not seeded and all(len(row) == len(names) + 1 for row in rows):
        names += [""] if _all_whole(row[-1] for row in rows) else []
    for row, end in zip(rows, ends, strict=True):
        if len(row) != len(names):
            hint = "; a text with commas stands in double quotes" if len(row) > len(names) else ""
            raise SpecError(f"{path}:{end}: expected {len(names)} values, got {len(row)}{hint}")
    if not rows:
        raise SpecError(f"{path}: the prompt set is empty")
    places: dict[str, int] = {}
    for key, known in (
        COLUMNS | {"text": (column,) if column else texts or COLUMNS["text"]}
    ).items():
        found = [i for name in known for i, own in enumerate(names) if _plain(own) == _plain(name)]
        if len({names[i] for i in found}) < len(found):
            raise SpecError(f"{path}:1: two columns are called {shown(names[found[0]])}")
        if key == "text" and len(found) > 1 and texts is None:
            either = " or ".join(shown(names[i]) for i in found)
            raise SpecError(
                f"{path}:1: several columns hold prompts: say which with FILE:COLUMN, where COLUMN is "
                f"{either}"
            )
        if key == "label":  # a class's number is not its name, if there is one beside it
            found = [i for i in found if not _all_whole(row[i] for row in rows)] or found
        if found:
            places[key] = found[0]
    if "seed" not in places:
        right = range(places["text"] + 1, len(names))
        seeds = [i for i in right if not names[i] and _all_whole(row[i] for row in rows)]
        places |= {"seed": seeds[0]} if seeds else {}
    return Table(path, tuple(names), tuple(map(tuple, rows)), tuple(ends), places)


def _without_header(path: Path, content: str) -> Table:
    """Read one prompt per line, perhaps with numbers: an id on the left, a seed on the right."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    rows, ends, places = [], [], {"text": 0}
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                ends.append(reader.line_num)
    except csv.Error:
        rows = []
    width = len(rows[0]) if rows else 0
    if len({len(row) for row in rows}) == 1:
        texts = [i for i in range(width) if not _all_whole(row[i] for row in rows)]
        if len(texts) == 1:
            places = {"text": texts[0]}
            places |= {"id": 0} if texts[0] == 1 else {}
            places |= {"seed": texts[0] + 1} if texts[0] + 1 < width else {}
            return Table(path, ("",) * width, tuple(map(tuple, rows)), tuple(ends), places)
    found = [(line.strip(), n) for n, line in enumerate(_split(content), 1) if line.strip()]
    if not found:
        raise SpecError(f"{path}: the prompt set is empty")
    return Table(path, ("",), tuple((t,) for t, _ in found), tuple(n for _, n in found), places)


def _is_list(path: Path, first: Sequence[str]) -> bool:
    """Return whether a file without a column of prompts has no header at all.

    No name of a column is a number or a sentence.
    """
    known = {_plain(name) for names in COLUMNS.values() for name in names} | _spaced(
        _I2P | _I2P_TOO
    )
    if known & set(map(_plain, first)):
        return False
    sentence = any(len(cell.split()) > 3 for cell in first)
    return path.suffix == ".txt" or sentence or any(cell.strip().isdecimal() for cell in first)


def _is_json(content: str) -> bool:
    """Return whether a file is a list or an object of JSON, or has such an object on each line."""
    for text in (content, content.strip().partition("\n")[0]):
        try:
            if isinstance(json.loads(text), list | dict):
                return True
        except (ValueError, RecursionError):
            continue
    return False


def _first(content: str, separator: str) -> list[str]:
    """Return the cells of the first line that is not empty."""
    return _cells(next(filter(None, _split(content)), ""), separator)


def _cells(line: str, separator: str) -> list[str]:
    """Return the cells of a line; of a broken one its text."""
    try:
        return next(csv.reader([line], delimiter=separator, strict=True), [])
    except csv.Error:
        return [line]


def _split(content: str) -> list[str]:
    """Return the lines of a file; not those of Unicode, which a prompt may hold."""
    return content.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _plain(name: str) -> str:
    """Return a column's name without case, underscores and further blanks."""
    return " ".join(name.casefold().replace("_", " ").split())


def _spaced(names: Iterable[str]) -> set[str]:
    return set(map(_plain, names))


def _all_whole(cells: Iterable[str]) -> bool:
    return all(_WHOLE.fullmatch(cell.strip()) for cell in cells)


def _listed(names: Sequence[str]) -> str:
    """Return a header for an error, however long and odd it is."""
    few = ", ".join(shown(name) for name in names[:12]) or "nothing"
    return few if len(names) <= 12 else f"{few} and {len(names) - 12} more"


def shown(text: str) -> str:
    """Return foreign text for an error: quoted, in one line, without control characters, not too long."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


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


_PACKED = (
    (b"PAR1", "Parquet"),
    (b"PK\x03\x04", "a spreadsheet or an archive"),
    (b"\x1f\x8b", "gzip"),
)


def _decoded(path: Path, data: bytes) -> str:
    if kind := next((kind for beginning, kind in _PACKED if data.startswith(beginning)), ""):
        raise SpecError(f"{path}: expected a CSV or a text file, got {kind}: save it as CSV")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        got = f"byte {data[exc.start]:#04x}" if exc.start < len(data) else "its end"
        raise SpecError(f"{path}:{line}: expected UTF-8, got {got}: save it as UTF-8") from exc
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SpecError(f"{path}:{line}: expected UTF-8, got a NUL byte: this is no text file")
    return text


def _lines(path: Path, reader: Any) -> Iterator[list[str]]:
    """Yield rows that are not blank; a quote that is never closed names its line.

    Spreadsheets write a blank row as commas; a single empty cell is a row with an empty text.
    """
    try:
        yield from (row for row in reader if len(row) == 1 or any(row))
    except csv.Error as exc:
        raise SpecError(f"{path}:{reader.line_num}: {exc}; is a quote missing?") from exc


_WHOLE = re.compile(r"\d+(\.0*)?", re.ASCII)


def whole(text: str, what: str, line: str) -> int:
    """Read a whole number from 0 to :data:`LAST_SEED`; "12.0", as pandas writes it, is 12.

    Raises:
        SpecError: It is none; ``what`` and ``line`` say where.
    """
    found = text.strip()
    digits = found.partition(".")[0].lstrip("0")[:40] or "0"
    value = int(digits) if _WHOLE.fullmatch(found) else -1
    if not 0 <= value <= LAST_SEED:
        raise SpecError(
            f"{line}: expected a whole number from 0 to {LAST_SEED} as {what}, got {shown(text)}"
        )
    return value


def scale(text: str, where: str) -> float:
    """Read a scale of guidance.

    Raises:
        SpecError: It is no number from 0 to :data:`MOST_GUIDANCE`.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST_GUIDANCE:
        raise SpecError(
            f"{where}: expected a number from 0 to {MOST_GUIDANCE:g} as guidance, got {shown(text)}"
        )
    return value
