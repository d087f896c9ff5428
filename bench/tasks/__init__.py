"""Prompt files, who is never drawn, tasks."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return :func:`load_task`, which needs more than the facade does, when it is asked for."""
    if name == "load_task":
        from bench.tasks.tasks import load_task

        return load_task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
