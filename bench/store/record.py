"""The record of one cell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from bench.core.types import Cost, SamplerNoise
from bench.plan.cell import Cell
from bench.store.metrics import Measurement

SCHEMA = 1
FROM = "from "
"""Begins the keys of an environment that name other distributions: ``{"from lab": "0.1, git 1a2b3c4"}``."""


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt of a cell.

    Args:
        id: The prompt's name in its set.
        text: The prompt as it is in the set.
        seed: Seed of its image.
        guidance: Its guidance.
        success: Whether the judge found the concept in any of its images; ``None`` if one of them
            could not be scored and no other succeeded.
        own: The judge's score of the prompt's own image.
        attacked: The judge's score of the adversarial prompt's image, made again by the harness.
        adversarial: The adversarial text, if there was an attack.
        cost: What the attack spent.
        trace: What the attack recorded.
        detail: What the judge said of the last image.
        scores: Further measures of the last image.
        adversarial_seed: Seed of the adversarial prompt's image.
        adversarial_noise: Noise in the sampler's steps, for attacks on the sampler.
        beyond: What else the attack changed: "embedding", "weights" or "noise"; empty for a prompt.
        own_detail: What the judge said of the prompt's own image, if there was an attack.
        adversarial_guidance: Guidance of the adversarial prompt's image, where it is another.
    """

    id: str
    text: str
    seed: int
    guidance: float
    success: bool | None
    own: float | None
    attacked: float | None = None
    adversarial: str | None = None
    cost: Cost = field(default_factory=Cost)
    trace: dict[str, Any] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float | None] = field(default_factory=dict)
    adversarial_seed: int | None = None
    adversarial_noise: SamplerNoise | None = None
    beyond: str = ""
    own_detail: dict[str, Any] = field(default_factory=dict)
    adversarial_guidance: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """The record of one cell. One that is read from a file has finite numbers only.

    Args:
        cell: What was computed.
        status: "skipped": method and model do not fit; "failed": a plug-in raised an error.
        measurements: Figures by name: "asr", "accuracy", "fid".
        rows: One per prompt; none for a task that is measured as a set.
        reason: Why it was skipped or failed.
        erasure: What the method changed: tensors, zeroed weights, bytes, digest, seconds, its notes.
        seconds: Wall-clock time of each stage.
        environment: Versions, device, commit, peak memory; other distributions that the cell is of.
        excluded: Prompts of the set that never run: :mod:`bench.tasks.exclusion`.
        space: What the attack changes: :class:`bench.core.types.Threat`.
        protocol: How it was drawn and judged, and what differs from the paper, in words.
        schema_version: Of this format.
    """

    __pydantic_config__: ClassVar = ConfigDict(allow_inf_nan=False)
    cell: Cell
    status: Literal["ok", "skipped", "failed"]
    measurements: dict[str, Measurement] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    reason: str = ""
    erasure: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    excluded: int = 0
    space: str = "prompt"
    protocol: dict[str, str] = field(default_factory=dict)
    schema_version: Annotated[int, Field(strict=True, ge=0)] = SCHEMA

    @property
    def budget_known(self) -> bool:
        """Whether the costs are what it took to attack: of texts that were handed in nobody knows."""
        return all(row.trace.get("budget") != "unknown" for row in self.rows)
