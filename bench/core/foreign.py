"""Calls code that is not ours, which may raise anything, even an interrupt."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bench.errors import BenchError, PluginError, raised

log = logging.getLogger("bench")


class _Keyboard:
    watched = pressed = False


@contextmanager
def watched_keyboard() -> Iterator[None]:
    """Note when the user interrupts, who cannot where interrupts are ignored, as after nohup."""
    before = signal.getsignal(signal.SIGINT)
    if before not in {signal.default_int_handler, signal.SIG_IGN}:  # somebody else watches
        yield
        return
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    _Keyboard.watched, _Keyboard.pressed = True, False
    try:
        yield
    finally:
        _Keyboard.watched = False
        signal.signal(signal.SIGINT, before)


def _interrupted(number: int, frame: FrameType | None) -> None:
    _Keyboard.pressed = True
    raise KeyboardInterrupt


def let_user_stop(exc: BaseException) -> None:
    """Raise a KeyboardInterrupt again if it is the user's, or if nobody watches the keyboard."""
    if isinstance(exc, KeyboardInterrupt) and (_Keyboard.pressed or not _Keyboard.watched):
        raise exc


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
        raise PluginError(f"{who} raised {raised(exc)}") from exc
