"""What a task says before its prompts are read: an entry of ``prompts/<world>/tasks.toml``, or an own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from bench.core.paths import PROMPTS
from bench.core.types import Concept, World
from bench.plugins.registry import Ref

ASSET = "asset:"
Role = Literal["target", "retain", "benign"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One number a task yields: whose scores, and how they become that number.

    ``reduce``: "rate" is the share of scores of at least ``threshold``; "mean" their mean;
    "set" the single score of an evaluator that looks at all images together, in benign tasks only.
    """

    metric: str
    evaluator: Ref
    reduce: Literal["rate", "mean", "set"]
    threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class Entry:
    """What a task says.

    Args:
        name: What records call the task.
        world: Whose models and judges it is for.
        folder: Where its prompt set lies, unless that is an asset.
        says: The keys of its entry: role, concept, prompts, measures, guidance, count; editions, the
            sizes that its prompt set had before it grew; families, labels that are near each other.
        paper: The keys of its paper's protocol, and ``about``, the paper; empty if it follows none.
        origin: Where a task that is not shipped is from, for errors; empty for one that is.
    """

    name: str
    world: World
    folder: Path
    says: Mapping[str, Any] = field(hash=False)
    paper: Mapping[str, Any] = field(default_factory=dict, hash=False)
    origin: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def role(self) -> Role:
        """What the task is for."""
        role: Role = self.says["role"]
        return role

    @property
    def concept(self) -> Concept | None:
        """What its model should have forgotten; only target tasks have one."""
        return concept_in(self.says) if "concept" in self.says else None

    @property
    def prompts(self) -> str:
        """Its prompt set: a file in ``folder``, or ``asset:NAME``."""
        return str(self.says["prompts"])

    @property
    def asset(self) -> str:
        """Its prompt set's asset; empty if it is a file."""
        return self.prompts.removeprefix(ASSET) if self.prompts.startswith(ASSET) else ""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What is measured; a target task's first measure decides success."""
        return tuple(
            Measure(m["metric"], Ref.parse(m["evaluator"]), m["reduce"], m.get("threshold", 0.5))
            for m in self.says["measures"]
        )

    @property
    def guidance(self) -> str:
        """Whose guidance: "own", each row's, or one scale for all."""
        return f"{self.says['guidance']:g}" if "guidance" in self.says else "own"

    @property
    def identity(self) -> dict[str, Any]:
        """What of the entry counts in the task's digest.

        Of one's own task the prompts count by their content alone, wherever the file lies.
        """
        left_out = {"editions", "families", *(("prompts", "count") if self.origin else ())}
        return {key: value for key, value in self.says.items() if key not in left_out}

    def saying(self, **changes: Any) -> Entry:
        """Return the entry with other values."""
        return replace(self, says={**self.says, **changes})


def shipped(world: World, root: Path = PROMPTS) -> dict[str, Entry]:
    """Return a world's entries by name, in the order of its table."""
    entries = {}
    for name, row in _table(world, root).items():
        says = {key: value for key, value in row.items() if key != "paper"}
        paper = says | row["paper"] if "paper" in row else {}
        entries[name] = Entry(name, world, root / world, says, paper)
    return entries


def concept_in(says: Mapping[str, Any]) -> Concept:
    """Return the concept of an entry that has one."""
    row = says["concept"]
    return Concept(**{**row, "terms": tuple(row.get("terms", ()))})


def _table(world: World, root: Path) -> dict[str, Any]:
    path = root / world / "tasks.toml"
    if not path.exists():
        return {}
    return _parsed(path.read_text(encoding="utf-8"))


@lru_cache(8)
def _parsed(text: str) -> dict[str, Any]:
    return tomllib.loads(text)
