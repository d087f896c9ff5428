"""Transfer: adversarial prompts that were found on one model, given to another."""

from __future__ import annotations

import csv
import hashlib
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

    Args:
        source: Path of the record or CSV file.
        digest: Its digest, filled in.
        origin: Where the prompts were found, method and attack; filled in from a record.
    """

    card: ClassVar = Card("Transfer of adversarial prompts", paper="")
    threat: ClassVar = Threat("black", "prompt")

    source: str = ""
    digest: str = ""
    origin: str = ""

    def resolve(self, concept: Concept, world: World) -> Transfer:
        """Return the attack with digest and origin filled in.

        Raises:
            SpecError: The source is not there, or was made for another concept or world.
        """
        path = Path(self.source)
        if not self.source or not path.is_file():
            raise SpecError(
                f"transfer: expected source=RECORD.json or FILE.csv, got {self.source!r}: no such file"
            )
        data = path.read_bytes()
        origin = path.stem
        if path.suffix == ".json":
            cell = _record(path, data)["cell"]
            made = (cell["world"], cell["concept"]["name"])
            if made != (world, concept.name):
                raise SpecError(
                    f"transfer: expected a record of {concept.name!r} in the {world} world, "
                    f"got {made[1]!r} in the {made[0]} world: {path}"
                )
            origin = f"{cell['method']['name']}/{cell['attack']['name']}"
        return replace(self, digest=hashlib.sha256(data).hexdigest()[:16], origin=origin)

    def prepare(
        self, target: Target, ctx: Context
    ) -> Callable[[Sequence[Prompt]], Iterator[Adversarial]]:
        """Read the source."""
        path = Path(self.source)
        read = _read_record if path.suffix == ".json" else _read_csv
        found = read(path)

        def replay(prompts: Sequence[Prompt]) -> Iterator[Adversarial]:
            if missing := [p.id for p in prompts if p.id not in found]:
                raise SpecError(
                    f"transfer: {path} has no row for {len(missing)} of {len(prompts)} prompts "
                    f"({', '.join(missing[:3])}): it was made for another task or fewer prompts"
                )
            for prompt in prompts:
                row = found[prompt.id]
                text, own = row.pop("text"), row.pop("own", prompt.text)
                if own != prompt.text:
                    raise SpecError(
                        f"transfer: {path} has another prompt {prompt.id}: {own!r}, "
                        f"expected {prompt.text!r}"
                    )
                trace = {"source_success": row.pop("success", None)}
                yield Adversarial(replace(prompt, text=text, **row), trace=trace)

        return replay


def _record(path: Path, data: bytes) -> Mapping[str, Any]:
    try:
        record: Mapping[str, Any] = json.loads(data)
        record["cell"]["concept"]["name"], record["rows"]
    except (ValueError, KeyError, TypeError) as exc:
        raise SpecError(f"transfer: {path} is no record of `bench run`") from exc
    return record


def _read_record(path: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for row in _record(path, path.read_bytes())["rows"]:
        if row.get("beyond"):
            raise SpecError(
                f"transfer: {path} holds more than prompts ({row['beyond']}): "
                "only prompts and seeds are given to another model"
            )
        if row.get("adversarial") is None:
            raise SpecError(f"transfer: {path} holds no adversarial prompts: it had no attack")
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
            raise SpecError(
                f"transfer: {path} lacks a column {wanted}; it has {', '.join(have) or 'none'}"
            )
        found: dict[str, dict[str, Any]] = {}
        for row in reader:
            try:
                values: dict[str, Any] = {"text": row[column["text"]]}
                if column["seed"]:
                    values["seed"] = int(row[column["seed"]])
                if column["guidance"]:
                    values["guidance"] = float(row[column["guidance"]])
            except (TypeError, ValueError) as exc:
                raise SpecError(f"transfer: {path}:{reader.line_num}: {exc}") from exc
            if row[column["id"]] in found:
                raise SpecError(
                    f"transfer: {path}:{reader.line_num}: {row[column['id']]!r} is there twice"
                )
            found[row[column["id"]]] = values
    return found
