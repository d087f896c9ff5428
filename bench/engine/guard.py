"""Runs a plug-in's code so that it harms nobody else.

Its errors name it, what it may not change is compared, and what it leaves behind is put back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import (
    BenchError,
    ChangedModelError,
    ContractError,
    IncompatibleError,
    PluginError,
    RefusedError,
    SpecError,
    StoreError,
)
from bench.core.foreign import let_user_stop, raised_at
from bench.core.state import global_state
from bench.models import delta
from bench.models.diffusers import DiffusersModel
from bench.sources.folders import PARTS

log = logging.getLogger("bench")
_noticed: ContextVar[list[str] | None] = ContextVar("_noticed", default=None)
_BLOCKS = 1021  # sums of so many blocks tell tensors apart whose values only changed places


@contextmanager
def noticed() -> Iterator[list[str]]:
    """Collect in words what plug-ins left behind in the block, and :func:`guard` put right."""
    found: list[str] = []
    token = _noticed.set(found)
    try:
        yield found
    finally:
        _noticed.reset(token)


@contextmanager
def guard(who: str, **kept: DiffusersModel) -> Iterator[None]:
    """Run a plug-in's code.

    Whatever it raises becomes a :class:`PluginError` that names it. The user's interrupt and a full disk
    are no plug-in's fault, and stop the run. No generator may yield inside the block: its early end would
    count as the plug-in's. The process's global state is put back.
    Models that it must leave alone are compared with what they were.

    Args:
        who: The plug-in, as a message names it.
        kept: Models that must not change, by the name that a message gives them.

    Raises:
        ChangedModelError: One of the models changed. Whoever holds it must throw it away.
        PluginError: The plug-in raised something; a :class:`RefusedError` if it was a SpecError.
        IncompatibleError: The plug-in says that it does not fit.
    """
    before = {name: _state(model) for name, model in kept.items()}
    put_back = global_state()
    failure: BenchError | None = None
    try:
        yield
    except (IncompatibleError, StoreError) as exc:
        failure = exc
    except PluginError as exc:
        failure = exc if who in str(exc) else type(exc)(f"{who}: {exc}")
    except SpecError as exc:
        failure = RefusedError(f"{who}: {exc}")
    except BenchError as exc:
        failure = PluginError(f"{who}: {exc}")
    except BaseException as exc:  # whatever else it is, it is the plug-in's
        let_user_stop(exc)
        log.info("%s failed here:", who, exc_info=exc)
        failure = PluginError(f"{who} raised {raised_at(exc)}")
        failure.__cause__ = exc
    finally:
        left = put_back()
    for name, model in kept.items():
        if awake(model):
            left.append(f"gradients or training mode of {name}")
            _lay_to_rest(model)
        now = _state(model)
        if changed := [part for part, was in before[name].items() if now[part] != was]:
            raise ChangedModelError(
                f"{who} changed {name}, which it must leave as it is ({changed[0]}, "
                f"{len(changed)} parts in all): expected it to work on a copy, model.copy()"
            ) from failure
    for what in left:
        log.info("%s changed %s, which was put back", who, what)
        if (found := _noticed.get()) is not None:
            found.append(what)
    if failure:
        raise failure


def plain(value: Any, what: str) -> Any:
    """Return a value as JSON gives it back.

    Raises:
        ContractError: It cannot be written as JSON.
    """
    try:
        return json.loads(json.dumps(value, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as exc:
        raise ContractError(f"{what}: expected plain numbers, texts, lists, dicts: {exc}") from exc


def finite(value: Any) -> bool:
    """Say whether a value is a real number, neither nan nor infinite."""
    return isinstance(value, int | float | np.floating) and math.isfinite(value)


def _state(model: DiffusersModel) -> Mapping[str, object]:
    """Return everything that decides what a model draws; equal states give equal images."""
    return {
        **{name: _digest(tensor) for name, tensor in delta.weights(model).items()},
        **delta.facts(model),
        "its guidance and screen": (model.guidance, model.screen, model.refuse),
    }


def _digest(tensor: Tensor) -> bytes:
    """Return a digest of a tensor's bits, taken where the tensor is: 0.1 s per GB on one core."""
    words = tensor.detach().contiguous().flatten().view(torch.uint8)
    words = words.clone() if words.storage_offset() % 8 else words
    whole = len(words) // (8 * _BLOCKS) * 8 * _BLOCKS
    total = hashlib.sha256(words[whole:].cpu().numpy().tobytes())
    if whole:
        blocks = words[:whole].view(torch.int64).view(_BLOCKS, -1)
        total.update(blocks.sum(1).cpu().numpy().tobytes())
    return total.digest()


def awake(model: DiffusersModel) -> bool:
    """Say whether a part of a model is in training mode, takes gradients or holds some."""
    parts = [getattr(model.pipe, part) for part in PARTS]
    return any(part.training for part in parts) or any(
        p.requires_grad or p.grad is not None for part in parts for p in part.parameters()
    )


def _lay_to_rest(model: DiffusersModel) -> None:
    """Switch gradients and training mode off, and drop gradients, as the harness hands models over."""
    for part in PARTS:
        module = getattr(model.pipe, part)
        module.eval().requires_grad_(False)
        module.zero_grad(set_to_none=True)
