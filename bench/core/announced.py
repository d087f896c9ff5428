"""What other distributions announce with entry points; listing names imports nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Any

from bench.core.errors import PluginLoadError, raised
from bench.core.foreign import let_user_stop


def announced(group: str) -> dict[str, str]:
    """Return the places ``module:ATTRIBUTE`` of a group by name, ``DISTRIBUTION/NAME``.

    Raises:
        PluginLoadError: Two have the same name.
    """
    table: dict[str, str] = {}
    for ep in _points(entry_points, group, tuple(sys.path)):
        name = f"{ep.dist.name if ep.dist else '?'}/{ep.name}"
        if name in table:
            raise PluginLoadError(
                f"two {group.removeprefix('bench.')} are named {name!r}: {table[name]} and {ep.value}; "
                "uninstall one"
            )
        table[name] = ep.value
    return table


def owners(names: Iterable[str]) -> set[str]:
    """Return the distributions of names, ``DISTRIBUTION/NAME``."""
    return {name.partition("/")[0] for name in names if "/" in name}


@cache
def _points(read: Callable[..., EntryPoints], group: str, _path: tuple[str, ...]) -> EntryPoints:
    """Read a group once for each search path: it takes 10 ms with some 150 distributions."""
    return read(group=group)


def imported(what: str, place: str, *, foreign: bool = True) -> Any:
    """Return the object at a place, ``module:ATTRIBUTE``.

    Args:
        what: Its name in errors, such as "method 'lab/mine'".
        place: The place.
        foreign: Whether it is from another distribution; the global state is then restored after the
            import.

    Raises:
        PluginLoadError: It cannot be imported.
    """
    module, _, name = place.partition(":")
    put_back = _global_state() if foreign else None
    try:
        return getattr(importlib.import_module(module), name)
    except BaseException as exc:  # a broken module may raise anything
        let_user_stop(exc)
        raise PluginLoadError(
            f"cannot load {what} from {place}: {raised(exc)}{_hidden(module)}"
        ) from exc
    finally:
        if put_back:
            put_back()


def _hidden(module: str) -> str:
    """Return what may hide a package: a folder of its name without ``__init__.py``, or nothing."""
    name = module.partition(".")[0]
    found = sys.modules.get(name)
    if found is None or getattr(found, "__file__", None) or not hasattr(found, "__path__"):
        return ""
    return (
        f". Python took the folder {next(iter(found.__path__))} for {name}: it has no __init__.py, and "
        f"hides an installed {name}. Go to another folder, or install it without -e"
    )


def _global_state() -> Callable[[], object]:
    from bench.core.state import global_state  # needs torch, which a list of names does not

    return global_state()
