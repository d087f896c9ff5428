"""What the user asks for, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.core.errors import SpecError
from bench.core.types import World
from bench.plugins.registry import Ref
from bench.sources.assets import check_names
from bench.sources.catalog import check_dtype
from bench.tasks.entries import Entry
from bench.tasks.promptsets import LAST_SEED, scale, shown
from bench.tasks.protocol import ProtocolName

_HINTS = {
    "methods": "; add `--method none` to take the model as it is",
    "attacks": "; add `--attack none` to take the prompts as they are",
    "tasks": "; `bench list tasks` names them",
}


@dataclass(frozen=True, slots=True)
class Spec:
    """One field per axis of the result matrix.

    Args:
        model: A model, as :func:`bench.sources.catalog.model_info` takes it.
        methods: Erasure methods.
        attacks: Attacks; "none" is the test prompts as they are.
        tasks: Target tasks, and retain or benign tasks that share their erased models: names, files
            ``PATH.toml``, or what such a file says.
        seed: Seed of every random stream.
        limit: First prompts of each task only; ``None`` is all of them.
        dtype: Type that images are drawn and attacked in.
        assets: Local paths of weights and data, by the names of :mod:`bench.sources.assets`.
        world: The world to use the model in, where it fits both; its own by default.
        prompts: A file, or ``FILE:COLUMN``, in place of the only task's prompt set.
        judge: An evaluator in place of the target tasks' judges.
        guidance: Scale of guidance for all rows; ``None`` is each row's own.
        protocol: "paper" takes the prompts, judges and guidance of the tasks' papers.
        floors: Also random tokens and other seeds, with as many images as each attack makes at most.
        erase_seed: Seed of the erasures, where it is another; then ``seed`` is that of attacks.
        erase: Target tasks whose concepts are erased, too, though only retain and benign tasks are
            measured on the erased models.

    Raises:
        SpecError: An axis is empty, something is there twice, or a value makes no sense.
    """

    model: str
    methods: tuple[Ref, ...]
    attacks: tuple[Ref, ...]
    tasks: tuple[str | Entry, ...]
    seed: int = 0
    limit: int | None = None
    dtype: str = "fp32"
    assets: Mapping[str, Path] = field(default_factory=dict)
    world: World | None = None
    prompts: Path | None = None
    judge: str = ""
    guidance: float | None = None
    protocol: ProtocolName = "default"
    floors: bool = False
    erase_seed: int | None = None
    erase: tuple[str | Entry, ...] = ()

    def __post_init__(self) -> None:
        for axis in ("methods", "attacks", "tasks", "erase"):
            flag = f"--{axis.removesuffix('s')}"
            kind = str | Entry if axis in ("tasks", "erase") else Ref
            given = getattr(self, axis)
            if isinstance(given, str) or not all(isinstance(value, kind) for value in given):
                what = "Ref" if kind is Ref else "names or entries"
                raise SpecError(f"{axis}: expected several {what}, got {given!r}")
            values = [str(value) for value in given]
            if not values and axis in _HINTS:
                raise SpecError(f"nothing to run: give {flag}{_HINTS[axis]}")
            if twice := next((v for v in values if values.count(v) > 1), None):
                raise SpecError(f"{flag}: expected each once, got {twice!r} twice")
        check_whole("--limit", self.limit, 1)
        check_whole("--seed", self.seed, 0)
        check_whole("--erase-seed", self.erase_seed, 0)
        check_dtype(self.dtype)
        if self.world not in (None, "emoji", "photo"):
            raise SpecError(f"--world: expected emoji or photo, got {self.world!r}")
        if self.guidance is not None:
            scale(str(self.guidance), "--guidance")
        check_names(self.assets)
        if self.protocol not in ("default", "paper"):
            raise SpecError(f"--protocol: expected default or paper, got {self.protocol!r}")
        if self.prompts and len(self.tasks) != 1:
            raise SpecError(
                f"--prompts: expected exactly one --task to use it for, got {len(self.tasks)}"
            )
        own = {
            "--prompts": self.prompts is not None,
            "--judge": bool(self.judge),
            "--guidance": self.guidance is not None,
        }
        if self.protocol == "paper" and (given := [flag for flag, on in own.items() if on]):
            raise SpecError(
                f"--protocol paper takes the paper's prompts, judge and guidance: "
                f"leave out {' and '.join(given)}, or --protocol"
            )


def check_whole(flag: str, value: int | None, least: int) -> None:
    """Refuse what is no whole number from ``least`` to :data:`LAST_SEED`; ``None`` is not given."""
    if value is None:
        return
    if type(value) is not int:
        raise SpecError(f"{flag}: expected a whole number, got {shown(str(value))}")
    if value < least:
        raise SpecError(f"{flag}: expected at least {least}, got {value}")
    if value > LAST_SEED:
        raise SpecError(f"{flag}: expected at most {LAST_SEED}, got {shown(str(value))}")
