"""Names that the shell completes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.report.describe import What


def names(what: What) -> Callable[[str], list[str]]:
    """Return a function that yields the names of a kind that begin with what was typed."""
    return lambda incomplete: _known(what, incomplete)


def named(ctx: Any, incomplete: str) -> list[str]:
    """Return the names of the kind that was typed before."""
    return _known(ctx.params.get("what") or "methods", incomplete)


def _known(what: What, incomplete: str) -> list[str]:
    from bench.report.describe import names_of

    return [name for name in names_of(what) if name.startswith(incomplete)]


def plugin_or_task(incomplete: str) -> list[str]:
    """Return the names of plug-ins and tasks that begin with what was typed."""
    kinds: tuple[What, ...] = ("methods", "attacks", "evaluators", "tasks")
    return list(dict.fromkeys(name for what in kinds for name in _known(what, incomplete)))
