"""Erases a concept, or takes the erasure from the cache."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.core.devices import is_short
from bench.core.digest import digest
from bench.core.errors import ContractError, PluginError
from bench.core.phrases import check_length
from bench.core.protocols import Guidance, Method
from bench.engine.guard import guard, plain
from bench.engine.settings import Settings
from bench.models import delta, load_model
from bench.models.diffusers import DiffusersModel
from bench.plan.cell import TRAIN, Cell
from bench.plugins.registry import create
from bench.store.artifacts import Artifacts
from bench.tasks.exclusion import may_mention_minors
from bench.tasks.safety import unsafe
from bench.tasks.tasks import Task

log = logging.getLogger("bench")


@dataclass(frozen=True, slots=True)
class Erased:
    """An erased model in the type that is drawn in.

    Args:
        model: It.
        key: Names its weights; equal images, equal name.
        card: What was done; empty for a base model.
        method: Whose code may run while it draws.
        unsafe: Whether its images may be unsafe.
    """

    model: DiffusersModel
    key: str
    card: dict[str, Any]
    method: str
    unsafe: bool = False


class Eraser:
    """Keeps base models and the last erased one.

    Concepts are erased from a base in fp32, whatever type is drawn in: training in less loses most of
    what it changes.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._models: dict[tuple[str, ...], DiffusersModel] = {}
        self._erased: tuple[str, Erased] | None = None

    def forget(self) -> None:
        """Drop all models: one of them is not what it should be."""
        self._models.clear()
        self._erased = None

    def base(self, cell: Cell) -> DiffusersModel:
        """Return a cell's base model in fp32, loaded once."""
        return self._model(cell, TRAIN)

    def original(self, cell: Cell) -> DiffusersModel:
        """Return a cell's base model in the type that is drawn in."""
        return self._compiled(self._model(cell, cell.dtype))

    def _compiled(self, model: DiffusersModel) -> DiffusersModel:
        """Compile a model's denoiser, if the user wants it; copies of it are not compiled."""
        if self.settings.compiled and model.pipe.unet._compiled_call_impl is None:
            model.pipe.unet.compile()
        return model

    def _model(self, cell: Cell, dtype: str) -> DiffusersModel:
        key = (cell.model, cell.world, dtype)
        if key not in self._models:
            if dtype == TRAIN:
                model = load_model(
                    cell.model,
                    world=cell.world,
                    device=self.settings.device,
                    batch_size=self.settings.batch_size,
                )
                wanted = self.settings.recompute
                if is_short(self.settings.device) if wanted is None else wanted:
                    model.pipe.unet.enable_gradient_checkpointing()
            else:
                model = self.base(cell).cast(dtype)
            self._models[key] = model
        return self._models[key]

    def victim(self, cell: Cell, task: Task) -> Erased:
        """Return the erased model of a cell, which draws no minors where images may be unsafe."""
        return self.screened(cell, hide=unsafe(cell.world, task.concept, task.measures))

    def screened(self, cell: Cell, *, hide: bool) -> Erased:
        """Return the erased model of a cell; ``hide`` says whether its images may be unsafe."""
        erased = replace(self.erase(cell), unsafe=hide)
        refuse = may_mention_minors if hide else None
        erased.model.refuse = self.original(cell).refuse = refuse
        return erased

    def erase(self, cell: Cell) -> Erased:
        """Return the erased model of a cell: from memory, from its delta, or made now."""
        key = digest([cell.erase_key, cell.dtype])
        if self._erased and self._erased[0] == key:
            return self._erased[1]
        self._erased = None  # one at a time in memory
        base = self.base(cell)
        cache = self.settings.artifacts
        card_path, delta_path = erasure_files(cache, cell)
        said, data = cache.load(card_path), cache.load(delta_path)
        if said is not None and data is not None:
            card, change = json.loads(said), delta.from_bytes(data)
        else:
            card, change, form = self._erase_now(cell, base)
            card_path.unlink(missing_ok=True)  # an old card must not stand beside a new delta
            cache.save_parts(delta_path, form.pieces())
            del form
            said = json.dumps(card, indent=1).encode()
            cache.save(card_path, said)
            card = json.loads(said)  # so that a made and a loaded card are equal
        del data
        name = [card["digest"]]
        if card.get("sampler_time"):  # such a method is in code, not in weights: apply it again
            name += [card["method"], card["concept"]]
            model = self._method(cell, base)
        else:
            model = delta.apply(base, change)
        if cell.dtype != TRAIN:
            model = model.cast(cell.dtype)
        model = self._compiled(model)
        erased = Erased(model, _weights_key(cell, cell.dtype, *name), card, cell.method.name)
        self._erased = (key, erased)
        return erased

    def _method(self, cell: Cell, base: DiffusersModel) -> DiffusersModel:
        """Run the cell's method on a private copy of the base model."""
        erased = run_method(cell, base, self.settings)
        with guard(f"method {cell.method.name}"):
            delta.check(base, erased)
        return erased

    def _erase_now(
        self, cell: Cell, base: DiffusersModel
    ) -> tuple[dict[str, Any], delta.Delta, delta.Form]:
        """Erase; return the card, what changed, and its form in a file."""
        start = time.perf_counter()
        erased = self._method(cell, base)
        taken = time.perf_counter() - start
        with guard(f"method {cell.method.name}"):
            change = delta.diff(base, erased)
        form = delta.stored(change)
        return (
            {
                "method": asdict(cell.method),
                "concept": asdict(cell.concept),
                "base": {"model": cell.model, "revision": cell.revision, "dtype": TRAIN},
                "seed": None if cell.seedless else cell.erased_with,
                "digest": delta.digest(change),
                "tensors": len(change),
                "parts": dict(Counter(key.partition(".")[0] for key in change)),
                "bytes": form.size,
                "zeroed": sum(_zeros(key, value) for key, value in change.items()),
                "seconds": round(taken, 3),
                "sampler_time": erased.guidance != base.guidance or erased.screen is not None,
                "notes": erased.notes,
            },
            change,
            form,
        )

    def unerased(self, cell: Cell) -> Erased:
        """Return a cell's base model as if it were an erased one."""
        key = _weights_key(cell, cell.dtype, delta.digest({}))
        return Erased(self.original(cell), key, {}, "none")


def run_method(cell: Cell, base: DiffusersModel, settings: Settings) -> DiffusersModel:
    """Return what a cell's method makes of a private copy of the base model.

    A method that runs out of memory is begun again with gradient checkpointing, unless the user said no.

    Raises:
        PluginError: The method raised something, or does not return what it should.
        IncompatibleError: It says that it does not fit the model.
    """
    unet = base.pipe.unet
    if settings.recompute is None and not unet.is_gradient_checkpointing:
        try:
            return _run_method(cell, base, settings)
        except PluginError as exc:
            if not isinstance(exc.__cause__, torch.OutOfMemoryError):
                raise
        log.warning("%s ran out of memory: begun again with --recompute", cell.method.name)
        unet.enable_gradient_checkpointing()
    return _run_method(cell, base, settings)


def _run_method(cell: Cell, base: DiffusersModel, settings: Settings) -> DiffusersModel:
    shared = _weights_key(cell, TRAIN, *([cell.method.source] if cell.method.source else []))
    ctx = settings.context(cell.erase_key, shared)
    who = f"method {cell.method.name}"
    check_length(base, cell.concept.phrases)
    with guard(who, **{"the base model": base}):
        method: Method = create("methods", cell.method)
        erased = method.erase(delta.private(base), cell.concept, ctx)
        if not isinstance(erased, DiffusersModel):
            raise ContractError(
                f"{who} returned {type(erased).__name__}, expected the model that it was given"
            )
        if not isinstance(erased.guidance, Guidance):
            raise ContractError(f"{who} set guidance {erased.guidance!r:.60}, expected Guidance")
        erased.source = None  # whoever attacks it must not get at the base
        erased.notes = plain(dict(erased.notes), f"{who}, notes")
    return erased


def erasure_files(cache: Artifacts, cell: Cell) -> tuple[Path, Path]:
    """Return where an erasure's card and delta are kept."""
    folder = cache.erasure(cell.erase_key)
    return folder / "card.json", folder / "delta.safetensors"


def _weights_key(cell: Cell, dtype: str, *change: object) -> str:
    """Name a cell's base model in a type after a change; equal images, equal name."""
    return digest([cell.model, cell.revision, TRAIN, dtype, *change])


def _zeros(key: str, value: torch.Tensor) -> int:
    if key.endswith("|zeros"):
        return len(value)
    if key.endswith("|bits"):
        return sum(int(byte).bit_count() for byte in value.tolist())
    return 0
