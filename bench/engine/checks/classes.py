"""What every plug-in's class keeps to, before it runs; and the classes of a file that is listed nowhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

import bench
from bench.core.announced import imported
from bench.core.errors import PluginLoadError, SpecError
from bench.core.paths import ROOT
from bench.core.types import ByKind, Concept, World
from bench.engine.checks.finding import Rules
from bench.plugins.registry import KINDS, Kind, Ref, create, load, names, resolved
from bench.report.describe import hints, in_words
from bench.tasks.tasks import concept_of

FACADE = {"models", "emoji"}
"""Parts of the harness that a plug-in may import beside ``bench`` itself."""
CONCEPTS = {"object": "church", "style": "van-gogh", "nsfw": "nudity"}
"""A task of each kind of concept."""
_NUMBERS = {"number", "whole number"}  # without bounds
_KNOWN = {"card", "threat", "scope", "metric"}
CALLED = {"methods": "erase", "attacks": "prepare", "evaluators": "prepare"}
_SIGNATURES = {
    "methods": "erase(self, model, concept, ctx)",
    "attacks": "prepare(self, target, ctx)",
    "evaluators": "prepare(self, ctx)",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A plug-in that is checked.

    Args:
        kind: Its kind.
        ref: Its name, and parameters that the user gave.
        place: Where its class lives.
    """

    kind: Kind
    ref: Ref
    place: str

    def __str__(self) -> str:
        return f"{self.kind.removesuffix('s')} {self.ref.name}"


def concept(kind: str) -> Concept:
    """Return a concept of a kind."""
    return cast("Concept", concept_of(CONCEPTS[kind], "emoji"))


# ---------------------------------------------------------------------------- rules
def _class(seen: Subject) -> str:
    cls = load(seen.kind, seen.ref.name)  # says what is wrong with class, card, threat and scope
    if not cls.__dataclass_params__.frozen:
        return f"{cls.__name__} can be changed: write @dataclass(frozen=True)"
    if not cls.card.title.strip():
        return 'its card has no title: card: ClassVar = Card("Title", "https://...")'
    return ""


def _called(seen: Subject) -> str:
    cls, name = load(seen.kind, seen.ref.name), CALLED[seen.kind]
    function, expected = getattr(cls, name, None), _SIGNATURES[seen.kind]
    if not inspect.isfunction(function):
        return f"it has no method {expected}"
    taken = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if len(taken) != expected.count(",") + 1:
        return f"expected {expected}, got {name}{inspect.signature(function)}"
    return ""


def _documented(seen: Subject) -> str:
    cls = load(seen.kind, seen.ref.name)
    doc = vars(cls).get("__doc__")
    if not isinstance(doc, str) or not doc.strip() or doc.startswith(f"{cls.__name__}("):
        return "write a docstring: `bench list` and `bench show` print it"
    return ""


def _imports(seen: Subject) -> str:
    cls = load(seen.kind, seen.ref.name)
    inner = {m.name for m in pkgutil.iter_modules(bench.__path__)} - FACADE
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[cls.__module__]))):
        used = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            used = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in used:
            top, _, rest = name.partition(".")
            if top == "bench" and rest.split(".")[0] in inner:
                return (
                    f"it imports {name}, which any version may move: import bench, bench.models and "
                    "bench.emoji alone"
                )
    return ""


def _parameters(seen: Subject) -> str:
    """Resolve it for each world and kind of concept: nothing is open, nothing moves when asked again."""
    for world in get_args(World):
        for of in map(concept, CONCEPTS):
            once = resolved(seen.kind, seen.ref, of, world)
            where = f"in the {world} world, for {of.name}"
            if resolved(seen.kind, once, of, world) != once:
                return f"{where}: given its own values again, it has others"
            if json.loads(json.dumps(once.params)) != once.params:
                return f"{where}: expected parameters that JSON gives back: no tuples"
            plugin = create(seen.kind, once)
            if still := [
                f.name for f in fields(plugin) if isinstance(getattr(plugin, f.name), ByKind)
            ]:
                return f"{where}: {still[0]} has no value"
    return ""


CLASS = "is a frozen dataclass with a card"
RULES: Rules[Subject] = {
    CLASS: _class,
    "has the method that the harness calls": _called,
    "says in its docstring what it does": _documented,
    "imports nothing from inside the harness": _imports,
    "has plain parameters with a value for each world and kind of concept": _parameters,
}  # fmt: skip


def _untyped(seen: Subject) -> str:
    cls = load(seen.kind, seen.ref.name)
    typed = {name for base in cls.__mro__ for name in vars(base).get("__annotations__", {})}
    for name, value in vars(cls).items():
        plain = isinstance(value, (bool, int, float, str, Path, list, dict))
        if plain and name not in typed | _KNOWN and not name.startswith("_") and name.islower():
            of = type(value).__name__
            return (
                f"{name} looks like a parameter but has no type, so nobody can set it: write "
                f"{name}: {of} = {value!r:.40}; if it is none, {name}: ClassVar = ..."
            )
    return ""


def _unbounded(seen: Subject) -> str:
    cls = load(seen.kind, seen.ref.name)
    takes = {name: in_words(hint) for name, hint in hints(cls).items()}
    free = [f.name for f in fields(cls) if _NUMBERS & set(takes.get(f.name, "").split(" or "))]
    if free:
        return (
            f"{', '.join(free)}: any number is taken, also one that makes no sense: give bounds, such as "
            "Annotated[float, Field(ge=0, le=4)]"
        )
    return ""


NOTES: Rules[Subject] = {
    "gives its parameters types": _untyped,
    "gives its numbers bounds": _unbounded,
}
"""What may be wrong."""


# ---------------------------------------------------------------------------- by name, or in a file
def subjects(ref: Ref) -> list[Subject]:
    """Return the plug-ins of a name, which several kinds may have, or those of a file.

    Raises:
        SpecError: There is no such file, or no plug-in is in it.
        PluginLoadError: It cannot be imported.
    """
    if ref.name.endswith(".py"):
        return _in_file(Path(ref.name), ref.params)
    tables: dict[Kind, dict[str, str]] = {kind: names(kind) for kind in KINDS}
    return [Subject(k, ref, table[ref.name]) for k, table in tables.items() if ref.name in table]


def _in_file(path: Path, params: dict[str, Any]) -> list[Subject]:
    """Import a file, and return the plug-ins that are written in it."""
    if not path.is_file():
        raise SpecError(f"there is no file {path}")
    module = _module(path.resolve())
    found = []
    for name, cls in vars(module).items():
        kind = _kind(cls) if inspect.isclass(cls) and cls.__module__ == module.__name__ else None
        if kind:
            place = f"{module.__name__}:{name}"
            known = [n for n, other in names(kind).items() if other == place]
            found.append(Subject(kind, Ref(known[0] if known else path.stem, params), place))
    if not found:
        raise SpecError(
            f"{path}: expected a class with {' or '.join(_SIGNATURES.values())}, there is none"
        )
    return found


@contextmanager
def listed(seen: Subject) -> Iterator[None]:
    """Let the harness find a plug-in that may be listed nowhere."""
    table = importlib.import_module(seen.kind).PLUGINS
    before = dict(table)
    if names(seen.kind).get(seen.ref.name) != seen.place:
        table[seen.ref.name] = seen.place
    try:
        yield
    finally:
        table.clear()
        table.update(before)


def _kind(cls: type) -> Kind | None:
    """Return what a class is by the method that it has, whatever else it lacks."""
    if hasattr(cls, "erase"):
        return "methods"
    prepare = getattr(cls, "prepare", None)
    if not inspect.isfunction(prepare) or getattr(cls, "_is_protocol", False):
        return None
    return "evaluators" if len(inspect.signature(prepare).parameters) == 2 else "attacks"


def _module(path: Path) -> Any:
    """Import a file under the name that it has in its package, if it is in one."""
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").exists() and folder != ROOT:
        parts, folder = [folder.name, *parts], folder.parent
    name = ".".join(parts)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    if getattr(sys.modules.get(name), "__file__", None) == str(
        path
    ):  # it may have been edited since
        del sys.modules[name]
    imported(str(path), f"{name}:__name__")
    where = getattr(module := sys.modules[name], "__file__", None) or "built in"
    if Path(where).resolve() != path:
        raise PluginLoadError(
            f"{path}: Python knows another module {name} ({where}): rename the file"
        )
    return module
