"""Erases a concept, or takes the erasure from the cache."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench.errors import ContractError, contract
from bench.exclusion import may_mention_minors
from bench.models import delta, load_model
from bench.models.diffusers import DiffusersModel
from bench.plan import Cell, digest
from bench.protocols import Method
from bench.registry import create
from bench.run.settings import Settings
from bench.safety import unsafe
from bench.store import write
from bench.types import Concept


@dataclass(frozen=True, slots=True)
class Erased:
    """An erased model, a key that names its weights, its card, and whether its images may be unsafe."""

    model: DiffusersModel
    key: str
    card: dict[str, Any]
    unsafe: bool = False


class Eraser:
    """Keeps base models and the last erased one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._models: dict[tuple[str, ...], DiffusersModel] = {}
        self._erased: tuple[str, Erased] | None = None

    def model(self, cell: Cell) -> DiffusersModel:
        """Return a cell's base model, loaded once."""
        key = (cell.model, cell.dtype, cell.world)
        if key not in self._models:
            self._models[key] = load_model(
                cell.model,
                world=cell.world,
                device=self.settings.device,
                dtype=cell.dtype,
                batch_size=self.settings.batch_size,
            )
        return self._models[key]

    def victim(self, cell: Cell, concept: Concept | None) -> Erased:
        """Return the erased model of a cell, which draws no minors where images may be unsafe."""
        erased = replace(self.erase(cell), unsafe=unsafe(cell.world, concept))
        refuse = may_mention_minors if erased.unsafe else None
        erased.model.refuse = self.model(cell).refuse = refuse
        return erased

    def erase(self, cell: Cell) -> Erased:
        """Return the erased model of a cell: from memory, from its delta, or made now."""
        if self._erased and self._erased[0] == cell.erase_key:
            return self._erased[1]
        base = self.model(cell)
        folder = self.settings.artifacts.erasure(cell.erase_key)
        card_path, delta_path = folder / "card.json", folder / "delta.safetensors"
        if card_path.exists() and delta_path.exists():
            card = json.loads(card_path.read_bytes())
            change = delta.from_file(delta_path)
        else:
            card, change = self._erase_now(cell, base)
            write(delta_path, delta.to_bytes(change))
            saved = json.dumps(card, indent=1).encode()
            write(card_path, saved)
            card = json.loads(saved)  # so that a made and a loaded card are equal
        if card.get("sampler_time"):  # such a method is in code, not in weights: apply it again
            key = _weights_key(cell, card["digest"], card["method"], card["concept"])
            erased = Erased(self._method(cell, base.copy()), key, card)
        else:
            erased = Erased(delta.apply(base, change), _weights_key(cell, card["digest"]), card)
        self._erased = (cell.erase_key, erased)
        return erased

    def _method(self, cell: Cell, model: DiffusersModel) -> DiffusersModel:
        """Run the cell's method on a private copy of the base model."""
        method: Method = create("methods", cell.method)
        base = self.settings.artifacts.root / "work" / _weights_key(cell, delta.digest({}))
        ctx = replace(self.settings.context(cell.erase_key), basedir=base)
        with contract(f"method {cell.method.name}"):
            erased = method.erase(model, cell.concept, ctx)
        if not isinstance(erased, DiffusersModel):
            raise ContractError(
                f"method {cell.method.name} returned {type(erased).__name__}, expected a model"
            )
        return erased

    def _erase_now(self, cell: Cell, base: DiffusersModel) -> tuple[dict[str, Any], delta.Delta]:
        start = time.perf_counter()
        erased = self._method(cell, base.copy())
        taken = time.perf_counter() - start
        change = delta.diff(base, erased)
        return (
            {
                "method": asdict(cell.method),
                "concept": asdict(cell.concept),
                "base": {"model": cell.model, "revision": cell.revision, "dtype": cell.dtype},
                "seed": cell.seed,
                "digest": delta.digest(change),
                "tensors": len(change),
                "bytes": len(delta.to_bytes(change)),
                "zeroed": sum(_zeros(key, value) for key, value in change.items()),
                "seconds": round(taken, 3),
                "sampler_time": erased.guidance is not base.guidance or erased.screen is not None,
                "notes": erased.notes,
            },
            change,
        )

    def original(self, cell: Cell) -> Erased:
        """Return a cell's base model as if it were an erased one."""
        return Erased(self.model(cell), _weights_key(cell, delta.digest({})), {})


def _weights_key(cell: Cell, *change: object) -> str:
    """Name a cell's base model after a change; equal images, equal name."""
    return digest([cell.model, cell.revision, cell.dtype, *change])


def _zeros(key: str, value: torch.Tensor) -> int:
    if key.endswith("|zeros"):
        return len(value)
    if key.endswith("|bits"):
        return sum(int(byte).bit_count() for byte in value.tolist())
    return 0
