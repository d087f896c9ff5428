"""What the user asks for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import SpecError
from bench.registry import Ref
from bench.types import World


@dataclass(frozen=True, slots=True)
class Spec:
    """One field per axis of the result matrix.

    Args:
        model: A model, as :func:`bench.catalog.model_info` takes it.
        methods: Erasure methods.
        attacks: Attacks; "none" is the test prompts as they are.
        tasks: Target tasks, and retain or benign tasks that share their erased models.
        seed: Seed of every random stream.
        limit: First prompts of each task only; ``None`` is all of them.
        dtype: Type of the weights.
        assets: Local paths of weights and data, by the names of :mod:`bench.assets`.
        world: The world to use the model in, where it fits both; its own by default.
        prompts: A file in place of the only task's prompt set.
        judge: An evaluator in place of the target tasks' judges.

    Raises:
        SpecError: An axis is empty or a number makes no sense.
    """

    model: str
    methods: tuple[Ref, ...]
    attacks: tuple[Ref, ...]
    tasks: tuple[str, ...]
    seed: int = 0
    limit: int | None = None
    dtype: str = "fp32"
    assets: Mapping[str, Path] = field(default_factory=dict)
    world: World | None = None
    prompts: Path | None = None
    judge: str = ""

    def __post_init__(self) -> None:
        for axis in ("methods", "attacks", "tasks"):
            if not getattr(self, axis):
                raise SpecError(f"nothing to run: expected at least one of --{axis[:-1]}, got none")
        if self.limit is not None and self.limit < 1:
            raise SpecError(f"--limit: expected at least 1, got {self.limit}")
        if self.seed < 0:
            raise SpecError(f"--seed: expected at least 0, got {self.seed}")
        if self.prompts and len(set(self.tasks)) != 1:
            raise SpecError(
                f"--prompts: expected exactly one --task to use it for, got {len(set(self.tasks))}"
            )
