"""An app whose commands all take ``--quiet`` and ``--verbose``."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from bench.cli.terminal import progress

Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print the result, warnings and errors only.",
        rich_help_panel="What is printed",
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Say also what is computed, and where in its code a plug-in failed.",
        rich_help_panel="What is printed",
    ),
]


class App(typer.Typer):
    """A group of commands that say less or more; their functions take no parameter for that."""

    def command(self, name: str | None = None, **others: Any) -> Callable[[Any], Any]:
        """Return typer's decorator for a command."""
        register = super().command(name, **others)

        def decorate(function: Callable[..., None]) -> Callable[..., None]:
            register(_with_loudness(function))
            return function

        return decorate


def _with_loudness(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function with two more options, which set how much is said."""
    hints = get_type_hints(function, include_extras=True)
    own = [
        p.replace(annotation=hints.get(p.name, p.annotation))
        for p in inspect.signature(function).parameters.values()
    ]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("quiet", Quiet), ("verbose", Verbose))
    ]

    @functools.wraps(function)
    def call(*, quiet: bool, verbose: bool, **options: Any) -> None:
        _set_loudness(quiet=quiet, verbose=verbose)
        function(**options)

    parameters = [*own, *more]
    call.__doc__ = "\n\n".join(  # lines of a paragraph are wrapped as wide as the terminal is
        " ".join(part.split()) for part in (inspect.getdoc(function) or "").split("\n\n")
    )
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _set_loudness(*, quiet: bool, verbose: bool) -> None:
    progress.quiet = quiet
    log = logging.getLogger("bench")
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    if verbose and not any(isinstance(handler, _ToStderr) for handler in log.handlers):
        log.addHandler(_ToStderr())


class _ToStderr(logging.Handler):
    """Prints what is logged to what is ``sys.stderr`` then, which a test or a notebook may replace."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
        except (OSError, ValueError):  # it is closed: no reason to stop what is computed
            self.handleError(record)
