"""The command line: parse, call one library function, print."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, cast

import typer

from bench.cli import authoring, figures, reports, upkeep  # noqa: F401  # their commands
from bench.cli.commands import app
from bench.cli.terminal import err, out, progress, say
from bench.core.errors import BenchError, MissingError, SpecError, StoreError, did_you_mean
from bench.core.foreign import stop_code, watched_keyboard

__all__ = ["app", "err", "main", "out", "progress"]
UsageError = cast("type[Exception]", typer.BadParameter.__mro__[1])  # click's, wherever that is


def main() -> None:
    """Run the app: an expected error is one line, an unexpected one a traceback."""
    nowhere = Path(os.devnull)  # of a stream that was closed by who started this
    sys.stdout, sys.stderr = sys.stdout or nowhere.open("w"), sys.stderr or nowhere.open("w")
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack letters of a table
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with watched_keyboard():
        code = _run_app()
    sys.exit(code)


def _run_app() -> int:
    if odd := [text for text in sys.argv[1:] if not _is_text(text)]:
        return _failed(
            f"expected text in UTF-8, got {odd[0]!r:.300}; rename it", SpecError.exit_code
        )
    try:
        code = int(app(prog_name="bench", standalone_mode=False) or 0)
        sys.stdout.flush()
    except MissingError as exc:
        code = _failed(exc.title, exc.exit_code)
        for way in exc.ways:
            say(f"  {way}", err)
    except BenchError as exc:
        return _failed(exc, exc.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except UsageError as exc:
        return _misused(exc)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _mute()
        return 1
    except OSError as exc:
        if exc.errno is None:  # not the operating system's
            raise
        _mute()
        where = f"{exc.filename}: " if exc.filename is not None else ""
        return _failed(f"{where}{exc.strerror}; choose another path", StoreError.exit_code)
    if code == 130:
        code = stop_code()
        say("stopped; what is finished is kept. The same command resumes.", err)
    return code


def _is_text(argument: str) -> bool:
    """Say whether a record can hold an argument: bytes that are no text come as half characters."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _mute() -> None:
    """Send what can no longer be printed nowhere, so that leaving does not fail on it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _failed(reason: object, code: int) -> int:
    say(f"error: {reason}", err, "red")
    return code


def _misused(exc: Any) -> int:
    """Say what is wrong with a command line; without any arguments its help is shown."""
    if type(exc).__name__ == "NoArgsIsHelpError":
        exc.show()
    else:
        command = exc.ctx.command_path if exc.ctx else "bench"
        _failed(f"{_in_words(exc.format_message())}; see `{command} --help`", SpecError.exit_code)
    return SpecError.exit_code


def _in_words(message: str) -> str:
    """Return the message of a wrong command line, with the choice that is nearest to what was given."""
    message = message.replace("Value error, ", "").rstrip(".")
    if match := re.search(r"'([^']*)' is not one of (.+)", message):
        message += "." + did_you_mean(match[1], re.findall(r"'([^']+)'", match[2]))
    return message.rstrip(".")
