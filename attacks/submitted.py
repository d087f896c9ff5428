"""Submitted: adversarial texts that somebody hands in, whatever found them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from attacks.transfer import read_list
from bench import (
    Adversarial,
    Attacker,
    Card,
    Concept,
    Context,
    Prompt,
    SpecError,
    Target,
    Threat,
    World,
)

_KEYS = ("id", "text", "seed", "guidance")


@dataclass(frozen=True)
class Submitted:
    """Takes texts from a CSV or JSONL file, draws and judges them; `bench submit` runs it.

    A CSV file is as for ``transfer``. A JSONL file has an object per line with ``id`` and ``text``, and may
    have ``seed`` and ``guidance``. Ids are those of the task's prompts; a prompt without a text stays as it
    is. What it took to find the texts is unknown: the record's trace says so, its cost is 0.

    Args:
        source: The file.
        label: What to call the attack in tables.
    """

    card: ClassVar = Card("Adversarial prompts that were handed in", paper="")
    threat: ClassVar = Threat("black", "prompt")

    source: Path | None = None
    label: str = ""

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse a file that is not of the task's prompts, or has no name."""
        if not self.label:
            raise SpecError("expected label=NAME, what to call the attack in tables, got none")
        known = {prompt.id for prompt in prompts}
        if other := [name for name in self._found() if name not in known]:
            raise SpecError(
                f"{self.source}: expected ids of the cell's prompts, got {len(other)} other: "
                f"{', '.join(other[:3])}"
            )

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the function that replaces texts and seeds."""

        def replay(prompts: Sequence[Prompt]) -> Iterator[Adversarial]:
            found = self._found()
            for prompt in prompts:
                changed = found.get(prompt.id, {})
                trace = {"origin": self.label, "given": bool(changed), "budget": "unknown"}
                yield Adversarial(replace(prompt, **changed), trace=trace)

        return replay

    def _found(self) -> dict[str, dict[str, Any]]:
        """Return what is handed in, by the id of its prompt."""
        if self.source is None or not self.source.is_file():
            raise SpecError(f"expected source=FILE.csv or FILE.jsonl, got {self.source}")
        data = self.source.read_bytes()
        if self.source.suffix in {".jsonl", ".json"}:
            data = _as_csv(self.source, data)
        return read_list(self.source, data)


def _as_csv(path: Path, data: bytes) -> bytes:
    """Return a JSONL file as CSV, so that both are read and checked alike."""
    rows = [_object(path, n, line) for n, line in enumerate(data.splitlines(), 1) if line.strip()]
    used = [key for key in _KEYS if any(key in row for row in rows)]
    for n, row in enumerate(rows, 1):
        if lacking := [key for key in ("id", "text", *used) if key not in row]:
            raise SpecError(f"{path}: object {n} has no {lacking[0]!r}")
    buffer = io.StringIO()
    names = ["adversarial" if key == "text" else key for key in used]
    rows_ = [[str(row[key]) for key in used] for row in rows]
    csv.writer(buffer).writerows([names, *rows_])
    return buffer.getvalue().encode()


def _object(path: Path, n: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise SpecError(f"{path}:{n}: expected a JSON object on each line") from exc
    if not isinstance(row, dict) or not isinstance(row.get("text", ""), str):
        raise SpecError(f"{path}:{n}: expected a JSON object with id and text")
    return row
