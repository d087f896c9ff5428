"""Which plug-ins are not as they were released: a digest of their source, for the content address.

A plug-in's source is its module and every module of the same top-level package that it imports, directly
or through others. The digests of the plug-ins that ship with a release are in ``fingerprints.json``; a
plug-in whose source has that digest is named by its version alone. Any other, edited here or of another
distribution, carries its digest in the identity of its cells, so that its old results are not reused.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
from functools import cache
from pathlib import Path

LISTING = Path(__file__).with_name("fingerprints.json")


@cache
def source_digest(module: str) -> str:
    """Return a short sha256 of a module's source; empty where there is no source to read."""
    files = _sources(module)
    if not files:
        return ""
    total = hashlib.sha256()
    for name, text in sorted(files.items()):
        total.update(f"{name} {hashlib.sha256(text.encode()).hexdigest()}\n".encode())
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


def _sources(module: str) -> dict[str, str]:
    """Return the source of a module and of what it imports of its own package, by module name."""
    family, found, todo = module.partition(".")[0], {}, [module]
    while todo:
        name = todo.pop()
        if name in found or (text := _source(name)) is None:
            continue
        found[name] = text
        for node in ast.walk(ast.parse(text)):
            todo += [n for n in _imported(node, name) if n.partition(".")[0] == family]
    return found


def _source(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).read_text(encoding="utf-8").replace("\r\n", "\n")


def _imported(node: ast.AST, importer: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = importer.split(".")[: -node.level]
        base = ".".join([*package, *([node.module] if node.module else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]


def main() -> None:
    """Write the listing of the plug-ins in this tree: ``make fingerprints``, before a commit."""
    modules = {
        place.partition(":")[0]
        for family in ("methods", "attacks", "evaluators")
        for place in importlib.import_module(family).PLUGINS.values()
    }
    listing = {module: source_digest(module) for module in sorted(modules)}
    LISTING.write_text(json.dumps(listing, indent=1) + "\n")


if __name__ == "__main__":
    main()
