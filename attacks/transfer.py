"""Transfer: adversarial prompts that were found on one model, tried on another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from bench import (
    ADVERSARIAL,
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
    later,
    read_table,
)


@dataclass(frozen=True)
class Transfer:
    """Takes each prompt's adversarial text and seed from a record or a CSV file.

    A record is a JSON file of ``bench run``. A CSV file has the columns ``id`` and ``adversarial``, and may
    have ``seed`` and ``guidance``; the column names of published lists (``case_number``, ``adv_prompt``,
    ``evaluation_seed``, ...) are understood, too. Ids are those of the task's prompts.

    The trace of each prompt says where its text was found (``origin``: method and attack of a record, or
    the name of a CSV file) and whether it succeeded there.

    In place of a file, ``found_on`` and ``found_by`` name a method and an attack: their cell, of the same
    task, prompts and seed, is computed first.

    Args:
        source: The record or CSV file.
        found_on: In place of ``source``: the method whose erased model was attacked.
        found_by: The attack on it.
        cell: The id of their cell, which the harness fills in.
    """

    card: ClassVar = Card("Transfer of adversarial prompts", paper="")
    threat: ClassVar = Threat("black", "prompt")

    source: Path | None = None
    found_on: str = later("")
    found_by: str = later("")
    cell: str = later("")

    def most_images(self) -> int:
        """Return the most images of a prompt: its own, and the text's that was found elsewhere."""
        return 2

    def takes(self) -> tuple[str, str] | None:
        """Return method and attack of the cell whose prompts it takes; ``None`` for those of a file."""
        return None if not self._is_planned() else (self.found_on, self.found_by)

    def check_plan(
        self, concept: Concept, world: World, prompts: Sequence[Prompt], context: int | None
    ) -> None:
        """Refuse a source that was made for another concept, world or task."""
        if self._is_planned():
            return
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

    def prepare(self, target: Target, ctx: Context) -> Attacker:
        """Return the function that replaces texts and seeds."""
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

    def _is_planned(self) -> bool:
        """Say whether the texts are those of a cell that is computed first."""
        named = [name for name in ("found_on", "found_by") if getattr(self, name)]
        if len(named) == 1 or (named and self.source):
            got = " and ".join([*(["source"] if self.source else []), *named])
            raise SpecError(f"expected source, or found_on and found_by, got {got}")
        if self.found_by.partition(":")[0] in {"none", "transfer"}:
            raise SpecError(f"found_by: expected an attack that finds texts, got {self.found_by}")
        return bool(named)

    @property
    def _path(self) -> Path:
        if self.source is None or not self.source.is_file():
            raise SpecError(
                "expected source=RECORD.json or FILE.csv, or found_on=METHOD,found_by=ATTACK, "
                f"got {self.source}"
            )
        return self.source

    def _found(self, prompts: Sequence[Prompt]) -> dict[str, dict[str, Any]]:
        """Return the source's rows by id; each prompt must have a row with the same original text."""
        path = self._path
        found = _read_record(path) if path.suffix == ".json" else read_list(path, path.read_bytes())
        if missing := [p.id for p in prompts if p.id not in found]:
            raise SpecError(
                f"{path} has no row for {len(missing)} of {len(prompts)} prompts "
                f"({', '.join(missing[:3])}): it was made for another task or fewer prompts"
            )
        for prompt in prompts:
            if (own := found[prompt.id].get("own", prompt.text)) != prompt.text:
                raise SpecError(
                    f"{path}: expected prompt {prompt.id} to be {prompt.text!r}, got {own!r}"
                )
        return found


def _record(path: Path) -> Mapping[str, Any]:
    try:
        record: Mapping[str, Any] = json.loads(path.read_bytes())
        record["cell"]["concept"]["name"], record["rows"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise SpecError(f"{path} is not a record of `bench run`") from exc
    return record


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for row in _record(path)["rows"]:
        if row.get("beyond"):
            raise SpecError(
                f"{path} has more than prompts ({row['beyond']}): only prompts and seeds can be "
                "tried on another model"
            )
        if row.get("adversarial") is None:
            raise SpecError(f"{path} has no adversarial prompts: it is a record without attack")
        seed = row.get("adversarial_seed")
        found[row["id"]] = {
            "text": row["adversarial"],
            "own": row["text"],
            "seed": row["seed"] if seed is None else seed,
            "guidance": row.get("adversarial_guidance") or row["guidance"],
            "success": row["trace"].get("success"),
        }
    return found


def read_list(path: Path, data: bytes) -> dict[str, dict[str, Any]]:
    """Return the rows of a CSV file by id: text, and seed and guidance if it has them."""
    table = read_table(path, data, texts=(*ADVERSARIAL, "prompt", "text"))
    if "id" not in table.columns:
        raise SpecError(
            f"{path} has no column id or case_number with the ids of the task's prompts; to try a list "
            "without ids as it is, use --prompts FILE --attack none"
        )
    own = table.named("adversarial_seed")
    found: dict[str, dict[str, Any]] = {}
    for i in range(len(table.rows)):
        values = table.values(i)
        name = values["id"].strip()
        if name in found:
            raise SpecError(f"{table.where(i)}: {name!r} is there twice")
        row = {"text": values["text"], "seed": table.seed(i, own), "guidance": table.guidance(i)}
        found[name] = {key: value for key, value in row.items() if value is not None}
    return found
