"""One entry of the result matrix, and its content address."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.core.digest import digest
from bench.core.types import Concept, World
from bench.plugins.registry import Ref

NO_CONCEPT = Concept("", "object")
IMAGES = "images"  # stands for the method and the model of images that were made elsewhere
TRAIN = "fp32"
"""The type of the weights that a method changes; a cell's own is that of drawing and attacking."""
REPLAYED = frozenset({"transfer", "submitted"})
"""Attacks that try what was found elsewhere, with the seed and the scale of guidance that belong to it."""
SEEDLESS = frozenset(
    {
        "none",
        "never-learned",
        "external",
        "uce",
        "concept-prune",
        "sld",
        "negative-prompt",
        "safety-checker",
    }
)
"""Methods that, as released, draw no random number."""
OF_PROMPTS = frozenset({"unlearndiff", "p4d"})
"""Attacks that, as released, draw from each prompt's own seed alone, as their official code does."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of the result matrix, with everything that can change its value.

    Args:
        world: Whose prompts and judges.
        model: The base model's name.
        revision: Digest of its weights.
        dtype: Type of drawing and attacking.
        method: The method with every parameter.
        concept: What is erased.
        task: The task's name.
        task_digest: Digest of its prompts and measures.
        prompts: How many of its prompts run.
        attack: The attack with every parameter.
        seed: Seed of every random stream.
        assets: Digest of each file that a judge needs.
        judges: Version of each judge that is past its first.
        sources: Digest of the source of each judge that is not as released.
        erase_seed: Seed of the erasure, where that is another; then ``seed`` is the attack's alone.
    """

    world: World
    model: str
    revision: str
    dtype: str
    method: Ref
    concept: Concept
    task: str
    task_digest: str
    prompts: int
    attack: Ref
    seed: int
    assets: dict[str, str] = field(default_factory=dict)
    judges: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    erase_seed: int | None = None

    @property
    def attacked(self) -> bool:
        """Whether there is an attack; without one the test prompts are drawn as they are."""
        return self.attack.name != "none"

    @property
    def values(self) -> dict[str, Any]:
        """Its fields by name, of method and attack what can change a value."""
        return _fields(self) | {
            "concept": _fields(self.concept),
            "method": self.method.identity,
            "attack": self.attack.identity,
        }

    @property
    def id(self) -> str:
        """Content address: equal inputs, equal id, on every machine."""
        values = self.values
        if self.dtype != TRAIN:  # the first versions erased in the type of drawing
            values["train"] = TRAIN
        later = {"assets", "judges", "sources", "erase_seed"}  # added after the first records
        return digest({k: v for k, v in values.items() if v not in ({}, None) or k not in later})

    @property
    def erased_with(self) -> int:
        """The seed of the erasure."""
        return self.seed if self.erase_seed is None else self.erase_seed

    @property
    def seedless(self) -> bool:
        """Whether the erasure is the same for all seeds, which then share it."""
        return self.method.name in SEEDLESS and not self.method.source

    @property
    def found_by_all_seeds(self) -> bool:
        """Whether the attack finds the same with all seeds, which then share it."""
        own = self.attack.name in OF_PROMPTS and not self.attack.source
        return own and self.attack.params.get("stream", "prompt") == "prompt"

    @property
    def erase_key(self) -> str:
        """Cells with one key share what a method changed, whatever type they draw in."""
        seed = 0 if self.seedless else self.erased_with
        base = [self.model, self.revision, TRAIN]
        return digest([*base, self.method.identity, _fields(self.concept), seed])

    @property
    def attack_key(self) -> str:
        """Cells with one key share attacked prompts; how many there are does not matter.

        The judge tells an attack when to stop, so its weights and version matter.
        """
        judge = [part for part in (self.assets, self.judges, self.sources) if part]
        seed = 0 if self.found_by_all_seeds else self.seed
        victim = [self.erase_key, self.dtype]
        return digest([*victim, self.task_digest, self.attack.identity, seed, *judge])

    @property
    def search_key(self) -> str:
        """Cells with one key share what an attack finds without victim and judge: all else is equal."""
        base = ["attack", self.model, self.revision, self.dtype, _fields(self.concept)]
        return digest([*base, self.task_digest, self.attack.identity, self.seed])


def _fields(value: Cell | Concept) -> dict[str, Any]:
    """Return the fields by name, as they are: ``asdict`` copies each, which takes several times as long."""
    return {name: getattr(value, name) for name in value.__slots__}
