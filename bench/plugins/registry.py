"""Plug-ins by name. Nothing is imported until it is asked for.

In-tree plug-ins are listed in the ``PLUGINS`` table of their folder. Others announce themselves
with an entry point in the group ``bench.methods``, ``bench.attacks`` or ``bench.evaluators`` and
are called ``<distribution>/<name>``.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from bench.core.announced import announced, imported
from bench.core.errors import (
    AssetError,
    ParamError,
    PluginLoadError,
    ShadowedPackageError,
    UnknownNameError,
    did_you_mean,
    raised,
)
from bench.core.paths import PROMPTS, ROOT
from bench.core.types import LATER, ByKind, Card, Concept, Threat, World
from bench.plugins.fingerprint import edited
from bench.sources.assets import content_digest

Kind = Literal["methods", "attacks", "evaluators"]
_ATTRIBUTES: dict[Kind, dict[str, type]] = {
    "methods": {"card": Card},
    "attacks": {"card": Card, "threat": Threat},
    "evaluators": {"card": Card, "scope": str},
}
KINDS: tuple[Kind, ...] = ("methods", "attacks", "evaluators")


@dataclass(frozen=True, slots=True)
class Ref:
    """A plug-in as a request or a record names it: ``esd:steps=500,lr=1e-4``.

    Args:
        name: The plug-in's.
        params: Values of its fields; in a record all of them, and of a file its path.
        version: Of its card.
        files: Digests of the files and folders among the parameters, by field, and of a method's assets.
        source: Digest of its source, if it is not a released one.
    """

    name: str
    params: dict[str, Any] = field(default_factory=dict)
    version: int | None = None
    files: dict[str, str] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read the command-line form."""
        name, _, rest = text.partition(":")
        pairs = [item.partition("=") for item in rest.split(",") if item]
        if any(not eq for _, eq, _ in pairs):
            raise ParamError(f"expected name:key=value,..., got {text!r}")
        keys = [key for key, _, _ in pairs]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ParamError(f"{name}: {', '.join(twice)} is given twice; give it once")
        return cls(name, {key: value for key, _, value in pairs})

    @property
    def identity(self) -> dict[str, Any]:
        """What of it can change a value: of a file its digest, not where it lies."""
        values: dict[str, Any] = {
            "name": self.name,
            "params": {k: v for k, v in self.params.items() if k not in self.files},
            "version": self.version,
        }
        further = {"files": self.files, "source": self.source}
        return values | {key: value for key, value in further.items() if value}

    def __str__(self) -> str:
        params = ",".join(f"{key}={value}" for key, value in self.params.items())
        return f"{self.name}:{params}" if params else self.name


def names(kind: Kind) -> dict[str, str]:
    """Return every known name of a kind and where its class lives, importing no plug-in."""
    return _own(kind) | announced(f"bench.{kind}")


def _own(kind: Kind) -> dict[str, str]:
    _refuse_shadow(kind)
    own: dict[str, str] = importlib.import_module(kind).PLUGINS
    return own


def load(kind: Kind, name: str) -> type[Any]:
    """Return a plug-in's class.

    Raises:
        UnknownNameError: No plug-in has this name.
        PluginLoadError: Its module cannot be imported or holds no such dataclass.
    """
    table = _own(kind)
    if name not in table:  # reading what all distributions announce takes 10 ms each time
        table = names(kind)
    if name not in table:
        raise UnknownNameError(kind.removesuffix("s"), name, table)
    what = f"{kind.removesuffix('s')} {name!r}"
    cls = imported(what, table[name], foreign="/" in name)
    who = f"{what} from {table[name]}"
    if not (isinstance(cls, type) and is_dataclass(cls)):
        raise PluginLoadError(f"{who}: expected a frozen dataclass, got {cls!r}")
    for attribute, expected in _ATTRIBUTES[kind].items():
        value = getattr(cls, attribute, None)
        if not isinstance(value, expected):
            raise PluginLoadError(
                f"{who}: expected a class variable {attribute} of type {expected.__name__}, "
                f"got {value!r}"
            )
    return cls


def written_out(kind: Kind, ref: Ref) -> str:
    """Return a plug-in with all its parameters, as records name it; of a file its name alone."""
    params = asdict(create(kind, ref))
    return str(Ref(ref.name, {k: v.name if isinstance(v, Path) else v for k, v in params.items()}))


def create(kind: Kind, ref: Ref) -> Any:
    """Return a plug-in with its parameters checked against the types and bounds of its fields.

    Of a reference that :func:`resolved` returned, a finished one. Fields that are left open keep what
    the class says, a :class:`ByKind` where that depends on the kind of concept.

    Raises:
        ParamError: A parameter is unknown, of the wrong type, out of bounds, or names no file.
        AssetError: One of its files is not what it was when it was planned.
    """
    cls = load(kind, ref.name)
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(ref.params) - known):
        takes = ", ".join(sorted(known)) or "no parameters"
        hint = did_you_mean(unknown[0], known)
        raise ParamError(
            f"{ref.name} has no parameter {', '.join(unknown)}.{hint} It takes: {takes}"
        )
    plugin = _validated(cls, ref.name, ref.params)
    for name, expected in ref.files.items():
        if name not in known:  # an asset, whose path is not a parameter
            continue
        if (got := content_digest(Path(getattr(plugin, name)))) != expected:
            raise AssetError(
                f"{ref.name}: {name}={getattr(plugin, name)} has changed: "
                f"expected digest {expected}, got {got}"
            )
    return plugin


def resolved(
    kind: Kind,
    ref: Ref,
    concept: Concept,
    world: World,
    defaults: Mapping[str, object] = MappingProxyType({}),
) -> Ref:
    """Return the reference with every default filled in, as it enters hashes and records.

    A value is the user's, else the model's own (``defaults``), else the world's, else the class's for
    this kind of concept.

    Raises:
        PluginLoadError: A field holds what no record can, or the class's own default is out of bounds.
    """
    create(kind, ref)  # what the user gave is checked before anything is put beside it
    cls = load(kind, ref.name)
    known = {f.name: f.default for f in fields(cls)}
    own = {n: getattr(d, concept.kind) for n, d in known.items() if isinstance(d, ByKind)}
    models = {
        name: value for name, value in defaults.items() if name in known and name not in ref.params
    }
    theirs = world_defaults(world, kind, ref.name, concept.kind)
    plugin = create(kind, replace(ref, params={**own, **theirs, **models, **ref.params}))
    values = asdict(plugin)
    try:
        _validated(cls, ref.name, values)
    except ParamError as exc:  # what others gave was checked above
        raise PluginLoadError(f"{exc}; that is the class's own default") from exc
    for each in fields(cls):
        if each.metadata.get(LATER) and values[each.name] == each.default:
            del values[each.name]
    files = {
        name: content_digest(value) for name, value in values.items() if isinstance(value, Path)
    }
    params = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
    for name, value in params.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as exc:
            raise PluginLoadError(
                f"{ref.name}: {name}={value!r:.60}: expected finite numbers, texts, lists, or one Path"
            ) from exc
    return Ref(ref.name, params, plugin.card.version, files, edited(cls.__module__))


def world_defaults(world: World, kind: Kind, name: str, of: str) -> dict[str, Any]:
    """Return a world's own values of a plug-in for one kind of concept.

    They are in ``prompts/<world>/defaults.toml``: a table ``[methods.esd]`` for every kind of concept,
    ``[methods.esd.style]`` for one.
    """
    table = _world_table(world).get(kind, {}).get(name, {})
    common = {key: value for key, value in table.items() if not isinstance(value, dict)}
    return common | table.get(of, {})


@cache
def _world_table(world: World) -> dict[str, Any]:
    path = PROMPTS / world / "defaults.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # making one takes 5 ms


def _validated(cls: type[Any], name: str, params: Mapping[str, Any]) -> Any:
    try:
        plugin = _adapter(cls).validate_python(params)
    except PydanticUserError as exc:
        raise PluginLoadError(f"{name}: {str(exc).splitlines()[0]}") from exc
    except ValidationError as exc:
        raise ParamError(f"{name}: {_what_is_wrong(exc)}") from exc
    except KeyboardInterrupt:
        raise
    except BaseException as exc:  # its __post_init__, or annotations that name nothing
        raise PluginLoadError(f"{name} cannot be made from its parameters: {raised(exc)}") from exc
    for key in params:
        value = getattr(plugin, key)
        if isinstance(value, float) and not math.isfinite(value):
            raise ParamError(f"{name}: {key}={params[key]}: expected a finite number")
        if isinstance(value, Path) and not value.exists():
            raise ParamError(f"{name}: {key}={value}: expected a file or folder, there is none")
    return plugin


def _what_is_wrong(error: ValidationError) -> str:
    """Return the first field that is wrong, with all that it may be; or which fields do not fit."""
    first, *rest = error.errors()
    if not first["loc"]:  # a plug-in's own check of several fields
        return first["msg"].removeprefix("Value error, ")
    field = first["loc"][0]
    if first["type"] == "missing":
        return f"{field} has no default: give {field}=..."
    wanted = [e["msg"] for e in (first, *rest) if e["loc"][:1] == (field,)]
    choices = re.findall(r"'([^']+)'", str(first.get("ctx", {}).get("expected", "")))
    hint = did_you_mean(str(first["input"]), choices)
    return f"{field}={first['input']}: {' or '.join(wanted)}{hint and '.'}{hint}"


def _refuse_shadow(package: str) -> None:
    """Fail loudly if a foreign top-level package hides one of ours."""
    spec = importlib.util.find_spec(package)
    found = _resolved(tuple(spec.submodule_search_locations or ())) if spec else []
    if found != [ROOT / package]:
        where = ", ".join(map(str, found)) or str(spec.origin if spec else "nothing")
        raise ShadowedPackageError(
            f"the package {package!r} resolves to {where}, expected {ROOT / package}; "
            "run the `bench` command from elsewhere and check site-packages"
        )


@cache
def _resolved(paths: tuple[str, ...]) -> list[Path]:
    return [Path(path).resolve() for path in paths]
