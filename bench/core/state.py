"""The process's global state: what a plug-in's code may leave behind, and how it is put back."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


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


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default type": (torch.get_default_dtype, torch.set_default_dtype),
    "whether torch keeps gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's precision of products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "torch's detection of anomalies": (
        torch.is_anomaly_enabled,
        torch.autograd.set_detect_anomaly,
    ),
    "torch's default device": (
        lambda: None if torch.get_default_device().type == "cpu" else torch.get_default_device(),
        torch.set_default_device,  # None is the CPU, without a hook into every call
    ),
    "torch's deterministic mode": (
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
    "the settings of cudnn": (_cudnn, _set_cudnn),
    "torch's autocast": (_autocast, _set_autocast),
    "numpy's handling of errors": (np.geterr, lambda values: np.seterr(**values)),
    "what is logged": (lambda: logging.root.manager.disable, logging.disable),
    "the standard streams": (lambda: (sys.stdout, sys.stderr), _set_output),
    "the current folder": (os.getcwd, os.chdir),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "the environment's variables": (lambda: dict(os.environ), _set_environment),
}
_STREAMS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_rng_state, torch.set_rng_state),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
)


def global_state() -> Callable[[], list[str]]:
    """Return what puts the process's global state back as it is now; until then no stream can be closed.

    Called, it returns which settings it found changed, in words. Random streams are none: loading a network
    moves them.
    """
    settings = {name: get() for name, (get, _) in _SETTINGS.items()}
    shields = _Shield(sys.stdout), _Shield(sys.stderr)
    sys.stdout, sys.stderr = shields
    streams = [get() for get, _ in _STREAMS]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    # Not catch_warnings, after which every warning that was shown once is shown again.
    filters, shown, show = warnings.filters, list(warnings.filters), warnings.showwarning

    def put_back() -> list[str]:
        if (sys.stdout, sys.stderr) == shields:
            _set_output(settings["the standard streams"])
        changed = []
        for name, (get, put) in _SETTINGS.items():
            if get() != settings[name]:
                changed.append(name)
                put(settings[name])
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
        return changed

    return put_back


class _Shield:
    """A standard stream that a plug-in cannot close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def close(self) -> None:
        """Leave it open."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
