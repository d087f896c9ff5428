"""Which plug-ins are not as they were released: a digest of their source, for the content address.

A plug-in's source is its module and what it imports, directly or through others: of the same top-level
package, of the modules beside that (unless it is installed among strangers'), of our plug-ins. Other files
that it reads count if they are parameters. The digests of the plug-ins that ship with a release are in
``fingerprints.json``; a plug-in whose source has that digest is named by its version alone. Any other,
edited here or of another distribution, carries its digest in the identity of its cells, so that its old
results are not reused.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
from collections.abc import Iterator
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

FAMILIES = ("methods", "attacks", "evaluators")
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_INSTALLED = {"site-packages", "dist-packages"}
LISTING = Path(__file__).with_name("fingerprints.json")


@cache
def source_digest(module: str) -> str:
    """Return a short sha256 of a module's source; empty where there is no source to read."""
    files = _sources(module)
    if not files:
        return ""
    total = hashlib.sha256()
    for name, text in sorted(files.items()):
        total.update(f"{name} {hashlib.sha256(text).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def edited(module: str) -> str:
    """Return a module's digest if it is not a released one; else nothing."""
    digest = source_digest(module)
    return "" if digest == released().get(module) else digest


@cache
def released() -> dict[str, str]:
    """Return the digests of the plug-ins that ship with this release, by module."""
    listing: dict[str, str] = json.loads(LISTING.read_text()) if LISTING.exists() else {}
    return listing


def _sources(module: str) -> dict[str, bytes]:
    """Return the source of a module and of what it imports of its own, by module name."""
    found: dict[str, bytes] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name in found or (path := _file(name)) is None:
            continue
        found[name] = _source(path)
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        for node in _statements(_parsed(found[name])):
            todo += [n for n in _imported(node, package) if _is_own(n, module)]
    return found


def _is_own(name: str, module: str) -> bool:
    """Say whether a module belongs to a plug-in's code: a library that it imports does not."""
    top, own = name.partition(".")[0], module.partition(".")[0]
    if top in (own, *FAMILIES):
        return True
    place = _place(own) if own not in FAMILIES else None
    return place is not None and place.name not in _INSTALLED and _place(top) == place


@cache
def _place(top: str) -> Path | None:
    """Return the folder in which a top-level module or package lies."""
    path = _file(top) if top else None
    return path and (path.parent.parent if path.stem == "__init__" else path.parent)


@cache
def _spec(name: str) -> ModuleSpec | None:
    """Return where a module lies, importing nothing; ``find_spec`` alone would import what is around it."""
    around, _, _ = name.rpartition(".")
    try:
        if not around:
            return importlib.util.find_spec(name)
        package = _spec(around)
        places = package and package.submodule_search_locations
        return PathFinder.find_spec(name, places) if places else None
    except (Exception, SystemExit):  # somebody's finder may raise anything
        return None


def _file(name: str) -> Path | None:
    spec = _spec(name)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _source(path: Path) -> bytes:
    return path.read_bytes().replace(b"\r\n", b"\n")


def _parsed(source: bytes) -> ast.AST:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):  # whoever imports it will hear of it
        return ast.Module([], [])


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every statement inside a node: imports are nowhere else, and expressions are many."""
    for block in _BLOCKS:
        inside = getattr(node, block, ())
        for statement in inside if isinstance(inside, list) else ():
            yield statement
            yield from _statements(statement)


def _imported(node: ast.AST, package: str) -> list[str]:
    """Return the modules that a statement in a module of a package may import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parts = package.split(".")
    around = parts[: len(parts) - node.level + 1] if node.level else []
    base = ".".join([*around, *([node.module] if node.module else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def main() -> None:
    """Write the listing of the plug-ins in this tree: ``make fingerprints``, before a commit."""
    modules = {
        place.partition(":")[0]
        for family in FAMILIES
        for place in importlib.import_module(family).PLUGINS.values()
    }
    listing = {module: source_digest(module) for module in sorted(modules)}
    LISTING.write_text(json.dumps(listing, indent=1) + "\n")


if __name__ == "__main__":
    main()
