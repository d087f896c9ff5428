"""Runs a plug-in's code so that it harms nobody else.

Its errors name it, what it may not change is compared, and what it leaves behind is put back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import (
    BenchError,
    ContractError,
    IncompatibleError,
    PluginError,
    SpecError,
    StoreError,
)
from bench.models import delta
from bench.models.diffusers import DiffusersModel

_BLOCKS = 1021  # sums of so many blocks tell tensors apart whose values only changed places


@contextmanager
def guard(who: str, **kept: DiffusersModel) -> Iterator[None]:
    """Run a plug-in's code.

    Whatever it raises becomes a :class:`PluginError` that names it. An interrupt, a full disk and a request
    that makes no sense are no plug-in's fault, and stop the run. The process's global state is put back.
    Models that it must leave alone are compared with what they were.

    Args:
        who: The plug-in, as a message names it.
        kept: Models that must not change, by the name that a message gives them.

    Raises:
        ContractError: One of the models changed. Whoever holds it must throw it away.
        PluginError: The plug-in raised something.
        IncompatibleError: The plug-in says that it does not fit.
        SpecError: The plug-in says that the user's request is wrong.
    """
    before = {name: _state(model) for name, model in kept.items()}
    put_back = _global_state()
    failure: Exception | None = None
    try:
        yield
    except (IncompatibleError, SpecError, StoreError) as exc:
        failure = exc
    except PluginError as exc:
        failure = exc if who in str(exc) else type(exc)(f"{who}: {exc}")
    except BenchError as exc:
        failure = PluginError(f"{who}: {exc}")
    except (Exception, SystemExit) as exc:
        said = (str(exc).strip().splitlines() or [""])[0][:300]
        failure = PluginError(f"{who} raised {type(exc).__name__}: {said}")
        failure.__cause__ = exc
    finally:
        put_back()
    for name, model in kept.items():
        _at_rest(model)
        now = _state(model)
        if changed := [part for part, was in before[name].items() if now[part] != was]:
            raise ContractError(
                f"{who} changed {name}, which it must leave as it is ({changed[0]}, "
                f"{len(changed)} parts in all): expected it to work on a copy, model.copy()"
            ) from failure
    if failure:
        raise failure


def plain(value: Any, what: str) -> Any:
    """Return a value as JSON gives it back.

    Raises:
        ContractError: It cannot be written as JSON.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as exc:
        raise ContractError(f"{what}: expected plain numbers, texts, lists, dicts: {exc}") from exc


def finite(value: Any) -> bool:
    """Say whether a value is a real number, neither nan nor infinite."""
    return isinstance(value, int | float | np.floating) and math.isfinite(value)


def _state(model: DiffusersModel) -> Mapping[str, object]:
    """Return what decides what a model draws, by part; equal states, equal images."""
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


def _at_rest(model: DiffusersModel) -> None:
    """Switch gradients and training mode off, and drop gradients, as the harness hands models over."""
    for part in delta.PARTS:
        module = getattr(model.pipe, part)
        module.eval().requires_grad_(False)
        module.zero_grad(set_to_none=True)


def _cudnn() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32


def _set_cudnn(values: tuple[bool, bool, bool]) -> None:
    cudnn = torch.backends.cudnn
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = values


def _autocast() -> list[bool]:
    return [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")]


def _set_autocast(values: list[bool]) -> None:
    for kind, value in zip(("cpu", "cuda"), values, strict=True):
        torch.set_autocast_enabled(kind, value)


def _set_output(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams


def _set_environment(values: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(values)


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (
        lambda: None if torch.get_default_device().type == "cpu" else torch.get_default_device(),
        torch.set_default_device,  # None is the CPU, without a hook into every call
    ),
    (
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
    (_cudnn, _set_cudnn),
    (_autocast, _set_autocast),
    (np.geterr, lambda values: np.seterr(**values)),
    (lambda: logging.root.manager.disable, logging.disable),
    (lambda: (sys.stdout, sys.stderr), _set_output),
    (os.getcwd, os.chdir),
    (lambda: dict(os.environ), _set_environment),
)
_STREAMS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_rng_state, torch.set_rng_state),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
)


def _global_state() -> Callable[[], None]:
    """Return what puts the process's global state back as it is now."""
    settings = [get() for get, _ in _SETTINGS]
    streams = [get() for get, _ in _STREAMS]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    # Not catch_warnings, after which every warning that was shown once is shown again.
    filters, shown, show = warnings.filters, list(warnings.filters), warnings.showwarning

    def put_back() -> None:
        for (get, put), value in zip(_SETTINGS, settings, strict=True):
            if get() != value:
                put(value)
        for (_, put), state in zip(_STREAMS, streams, strict=True):
            put(state)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        warnings.filters, warnings.showwarning = filters, show
        if list(filters) != shown:
            filters[:] = shown  # type: ignore[index]
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)

    return put_back
