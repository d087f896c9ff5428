"""Calls code that is not ours, which may raise anything, even an interrupt."""

from __future__ import annotations

import logging
import os
import signal
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType

from bench.core.errors import BenchError, PluginError, raised
from bench.core.paths import ROOT

log = logging.getLogger("bench")
_INSTALLED = {"site-packages", "dist-packages"}
_FAMILIES = ("methods", "attacks", "evaluators")
_STDLIB = Path(sysconfig.get_path("stdlib"))


class _Keyboard:
    watched = False
    stopped = process = 0  # the signal that came; whose


@contextmanager
def watched_keyboard() -> Iterator[None]:
    """Note when the user interrupts, who cannot where interrupts are ignored, as after nohup.

    SIGTERM, as of a job whose time is up, then interrupts likewise, unless somebody else takes it, as Ray.
    """
    before, on_term = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    if before not in {signal.default_int_handler, signal.SIG_IGN}:  # somebody else watches
        yield
        return
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    if on_term is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupted)
    _Keyboard.watched, _Keyboard.stopped, _Keyboard.process = True, 0, os.getpid()
    try:
        yield
    finally:
        _Keyboard.watched = False
        signal.signal(signal.SIGINT, before)
        if on_term is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, on_term)


def _interrupted(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGTERM and os.getpid() != _Keyboard.process:  # a fork, which is put away
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    _Keyboard.stopped = number
    raise KeyboardInterrupt


def stop_code() -> int:
    """Return the exit code of what was interrupted: 128 and the signal, which is Ctrl-C's if none came."""
    return 128 + (_Keyboard.stopped or signal.SIGINT)


def let_user_stop(exc: BaseException) -> None:
    """Raise a KeyboardInterrupt again if it is the user's, or if nobody watches the keyboard."""
    if isinstance(exc, KeyboardInterrupt) and (_Keyboard.stopped or not _Keyboard.watched):
        raise exc


def place(exc: BaseException) -> str:
    """Return the file and line of a plug-in's own code in which it raised something, or nothing.

    That is the innermost line that is neither the harness's nor an installed library's.
    """
    found = ""
    for frame, line in traceback.walk_tb(exc.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path.is_file() and not _is_library(path, frame.f_globals.get("__name__", "")):
            near = [base for base in (Path.cwd(), ROOT) if path.is_relative_to(base)]
            short = path.relative_to(near[0]) if near else Path(path.parent.name, path.name)
            found = f"{short}:{line}"
    return found


def raised_at(exc: BaseException) -> str:
    """Say what a plug-in raised, and where."""
    where = place(exc)
    return f"{raised(exc)} ({where})" if where else raised(exc)


def _is_library(path: Path, module: str) -> bool:
    """Say whether a file is of the harness, of Python or of an installed package without plug-ins."""
    if path.is_relative_to(ROOT / "bench"):
        return True
    if _INSTALLED & set(path.parts):
        return module.partition(".")[0] not in _packages()
    return path.is_relative_to(_STDLIB)


def _packages() -> set[str]:
    """Return the top-level packages that hold plug-ins."""
    groups = [entry_points(group=f"bench.{kind}") for kind in _FAMILIES]
    return {*_FAMILIES, *(ep.module.partition(".")[0] for group in groups for ep in group)}


@contextmanager
def contract(who: str) -> Iterator[None]:
    """Turn whatever a plug-in raises into a PluginError that names it."""
    try:
        yield
    except BenchError:
        raise
    except BaseException as exc:
        let_user_stop(exc)
        log.info("%s failed here:", who, exc_info=exc)
        raise PluginError(f"{who} raised {raised_at(exc)}") from exc
