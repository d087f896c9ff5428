"""Plug-ins by name. Nothing is imported until it is asked for.

In-tree plug-ins are listed in the ``PLUGINS`` table of their folder. Others announce themselves
with an entry point in the group ``bench.methods``, ``bench.attacks`` or ``bench.evaluators`` and
are called ``<distribution>/<name>``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from bench.errors import ParamError, PluginLoadError, ShadowedPackageError, UnknownNameError
from bench.types import Concept, World, fill

Kind = Literal["methods", "attacks", "evaluators"]
KINDS: tuple[Kind, ...] = ("methods", "attacks", "evaluators")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Ref:
    """A plug-in as a request or a record names it: ``esd:steps=500,lr=1e-4``."""

    name: str
    params: dict[str, Any] = field(default_factory=dict)
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read the command-line form."""
        name, _, rest = text.partition(":")
        pairs = [item.partition("=") for item in rest.split(",") if item]
        if any(not eq for _, eq, _ in pairs):
            raise ParamError(f"expected name:key=value,..., got {text!r}")
        return cls(name, {key: value for key, _, value in pairs})

    def __str__(self) -> str:
        params = ",".join(f"{key}={value}" for key, value in self.params.items())
        return f"{self.name}:{params}" if params else self.name


def names(kind: Kind) -> dict[str, str]:
    """Return every known name of a kind and where its class lives, importing no plug-in."""
    _refuse_shadow(kind)
    table: dict[str, str] = dict(importlib.import_module(kind).PLUGINS)
    for ep in entry_points(group=f"bench.{kind}"):
        name = f"{ep.dist.name if ep.dist else '?'}/{ep.name}"
        if name in table:
            raise PluginLoadError(
                f"two {kind} are named {name!r}: {table[name]} and {ep.value}; uninstall one"
            )
        table[name] = ep.value
    return table


def load(kind: Kind, name: str) -> type[Any]:
    """Return a plug-in's class.

    Raises:
        UnknownNameError: No plug-in has this name.
        PluginLoadError: Its module cannot be imported or holds no such dataclass.
    """
    table = names(kind)
    if name not in table:
        raise UnknownNameError(kind.removesuffix("s"), name, table)
    module, _, attr = table[name].partition(":")
    try:
        cls = getattr(importlib.import_module(module), attr)
    except Exception as exc:  # a broken plug-in may raise anything while it is imported
        raise PluginLoadError(
            f"cannot load {kind.removesuffix('s')} {name!r} from {table[name]}: "
            f"{type(exc).__name__}: {exc}"
        ) from exc
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise PluginLoadError(f"{table[name]} must be a frozen dataclass, got {cls!r}")
    return cls


def create(kind: Kind, ref: Ref) -> Any:
    """Return a plug-in with its parameters checked against its fields."""
    cls = load(kind, ref.name)
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(ref.params) - known):
        takes = ", ".join(sorted(known)) or "no parameters"
        raise ParamError(f"{ref.name} has no parameter {', '.join(unknown)}. It takes: {takes}")
    try:
        return TypeAdapter(cls).validate_python(ref.params)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ParamError(f"{ref.name}: {where}={first['input']}: {first['msg']}") from exc


def resolved(
    kind: Kind,
    ref: Ref,
    concept: Concept,
    world: World,
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> Ref:
    """Return the reference with every default filled in, as it enters hashes and records.

    ``defaults`` are a model's own, for parameters that are left open.
    """
    plugin = create(kind, ref)
    plugin = fill(plugin, **{k: v for k, v in defaults.items() if hasattr(plugin, k)})
    if hasattr(plugin, "resolve"):
        plugin = plugin.resolve(concept, world)
    return Ref(ref.name, asdict(plugin), plugin.card.version)


def _refuse_shadow(package: str) -> None:
    """Fail loudly if a foreign top-level package hides one of ours."""
    spec = importlib.util.find_spec(package)
    found = [Path(p).resolve() for p in (spec.submodule_search_locations or [])] if spec else []
    if found != [ROOT / package]:
        where = ", ".join(map(str, found)) or str(spec.origin if spec else "nothing")
        raise ShadowedPackageError(
            f"the package {package!r} resolves to {where}, expected {ROOT / package}; "
            "run the `bench` command from elsewhere and check site-packages"
        )
