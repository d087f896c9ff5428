"""Transfer: adversarial prompts that were found on one model, given to another."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from bench import Adversarial, Card, Concept, Context, Prompt, SpecError, Target, Threat, World

_COLUMNS = {  # ours first, then what published lists call it
    "id": ("id", "case_number"),
    "text": ("adversarial", "adv_prompt", "prompt", "text"),
    "seed": ("adversarial_seed", "seed", "evaluation_seed", "sd_seed"),
    "guidance": ("guidance", "evaluation_guidance", "sd_guidance_scale"),
}


@dataclass(frozen=True)
class Transfer:
    """Replays each prompt's adversarial text and seed from a record or a CSV file.

    A record is a JSON file of ``bench run``. A CSV file has the columns ``id`` and ``adversarial``, and
    may have ``seed`` and ``guidance``; the names in published lists (``case_number``, ``adv_prompt``,
    ``evaluation_seed``, ...) are known as well. Ids are those of the task's prompts.

    The trace of each prompt says where it was found (``origin``: method and attack of a record, the name of
    a CSV file) and whether it succeeded there.

    Args:
        source: The record or CSV file.
    """

    card: ClassVar = Card("Transfer of adversarial prompts", paper="")
    threat: ClassVar = Threat("black", "prompt")

    source: Path | None = None

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse a source that was made for another concept, world or task."""
        path = self._path
        if path.suffix == ".json":
            cell = _record(path)["cell"]
            made = (cell["world"], cell["concept"]["name"])
            if made != (world, concept.name):
                raise SpecError(
                    f"expected a record of {concept.name!r} in the {world} world, "
                    f"got {made[1]!r} in the {made[0]} world: {path}"
                )
        self._found(prompts)

    def prepare(
        self, target: Target, ctx: Context
    ) -> Callable[[Sequence[Prompt]], Iterator[Adversarial]]:
        """Return the replay."""
        origin = self._path.stem
        if self._path.suffix == ".json":
            cell = _record(self._path)["cell"]
            origin = f"{cell['method']['name']}/{cell['attack']['name']}"

        def replay(prompts: Sequence[Prompt]) -> Iterator[Adversarial]:
            found = self._found(prompts)
            for prompt in prompts:
                row = found[prompt.id]
                changed = {name: row[name] for name in ("text", "seed", "guidance") if name in row}
                trace = {"source_success": row.get("success"), "origin": origin}
                yield Adversarial(replace(prompt, **changed), trace=trace)

        return replay

    @property
    def _path(self) -> Path:
        if self.source is None or not self.source.is_file():
            raise SpecError(f"expected source=RECORD.json or FILE.csv, got {self.source}")
        return self.source

    def _found(self, prompts: Sequence[Prompt]) -> dict[str, dict[str, Any]]:
        """Return the source's rows by id, which must have all prompts, with the same text."""
        path = self._path
        found = _read_record(path) if path.suffix == ".json" else _read_csv(path)
        if missing := [p.id for p in prompts if p.id not in found]:
            raise SpecError(
                f"{path} has no row for {len(missing)} of {len(prompts)} prompts "
                f"({', '.join(missing[:3])}): it was made for another task or fewer prompts"
            )
        for prompt in prompts:
            if (own := found[prompt.id].get("own", prompt.text)) != prompt.text:
                raise SpecError(
                    f"{path} has another prompt {prompt.id}: {own!r}, expected {prompt.text!r}"
                )
        return found


def _record(path: Path) -> Mapping[str, Any]:
    try:
        record: Mapping[str, Any] = json.loads(path.read_bytes())
        record["cell"]["concept"]["name"], record["rows"]
    except (ValueError, KeyError, TypeError) as exc:
        raise SpecError(f"{path} is no record of `bench run`") from exc
    return record


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for row in _record(path)["rows"]:
        if row.get("beyond"):
            raise SpecError(
                f"{path} holds more than prompts ({row['beyond']}): "
                "only prompts and seeds are given to another model"
            )
        if row.get("adversarial") is None:
            raise SpecError(f"{path} holds no adversarial prompts: it had no attack")
        seed = row.get("adversarial_seed")
        found[row["id"]] = {
            "text": row["adversarial"],
            "own": row["text"],
            "seed": row["seed"] if seed is None else seed,
            "guidance": row["guidance"],
            "success": row["trace"].get("success"),
        }
    return found


def _read_csv(path: Path) -> dict[str, dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        have = reader.fieldnames or []
        column = {key: next((n for n in names if n in have), "") for key, names in _COLUMNS.items()}
        if lacking := [key for key in ("id", "text") if not column[key]]:
            wanted = " and ".join(" or ".join(_COLUMNS[key]) for key in lacking)
            raise SpecError(f"{path} lacks a column {wanted}; it has {', '.join(have) or 'none'}")
        found: dict[str, dict[str, Any]] = {}
        for row in reader:
            try:
                values: dict[str, Any] = {"text": row[column["text"]]}
                if column["seed"]:
                    values["seed"] = int(row[column["seed"]])
                if column["guidance"]:
                    values["guidance"] = float(row[column["guidance"]])
            except (TypeError, ValueError) as exc:
                raise SpecError(f"{path}:{reader.line_num}: {exc}") from exc
            if row[column["id"]] in found:
                raise SpecError(f"{path}:{reader.line_num}: {row[column['id']]!r} is there twice")
            found[row[column["id"]]] = values
    return found
