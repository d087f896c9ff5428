"""What there is, in words: plug-ins with the values that they will use, tasks and models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from bench.core.types import ByKind, World
from bench.errors import BenchError
from bench.plugins import registry
from bench.plugins.registry import Kind
from bench.sources import catalog
from bench.tasks import tasks

What = Literal["methods", "attacks", "evaluators", "tasks", "models"]
KINDS: tuple[Literal["nsfw", "style", "object"], ...] = ("nsfw", "style", "object")
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
_TYPES = {
    "number": "number",
    "integer": "whole number",
    "boolean": "true or false",
    "string": "text",
    "null": "none",
    "array": "list",
    "object": "table",
}


def listing(what: What, world: World) -> Iterator[tuple[str, str]]:
    """Yield names, and what each is; a plug-in that cannot be loaded is listed with the cause."""
    if what == "models":
        yield from ((name, info.about) for name, info in catalog.MODELS.items())
    elif what == "tasks":
        yield from ((name, tasks.about_task(name, world)) for name in tasks.task_names(world))
    else:
        for name in registry.names(what):
            yield name, _title(what, name)


def details(what: What, name: str, model: str, world: World | None) -> Iterator[str]:
    """Yield what is known of a plug-in, a task or a model, a line at a time.

    Args:
        what: Its kind.
        name: Its name.
        model: The model with which a plug-in would be used.
        world: The world of that model, where it fits both.
    """
    info = catalog.model_info(model, world)
    if what == "models":
        yield from _model(name)
    elif what == "tasks":
        yield from _task(name, info.world)
    else:
        cls = registry.load(what, name)
        yield f"{name}: {cls.card.title}"
        yield from (str(line) for line in (cls.card.paper, cls.card.code) if line)
        docs = [vars(base).get("__doc__") for base in cls.__mro__[:-1]]
        yield from (line for doc in docs if isinstance(doc, str)
                    for line in _paragraphs(inspect.cleandoc(doc)))  # fmt: skip
        yield from _values(cls, _Defaults(what, name, model, info, bool(cls.card.paper)))


def _title(kind: Kind, name: str) -> str:
    try:
        return str(registry.load(kind, name).card.title)
    except BenchError as exc:
        return f"[broken] {exc}"


def _model(name: str) -> Iterator[str]:
    info = catalog.model_info(name)
    yield f"{name}: {info.about}"
    yield f"world {info.world}, from {info.source}"
    yield str(info.sampling)
    yield "the built-in safety checker is off: images are judged as they are made"


def _task(name: str, world: World) -> Iterator[str]:
    task = tasks.load_task(name, world)
    yield f"{task.name}: {task.role}, {task.concept}"
    yield f"prompts: {task.source}"
    if task.paper:
        yield f"paper: {task.paper}"
    yield from (f"differs from it: {line}" for line in task.deviations)
    yield from (f"{m.metric}: {m.evaluator} ({m.reduce})" for m in task.measures)
    yield from (f"{p.id}  seed {p.seed}  guidance {p.guidance:g}  {p.text}" for p in task.prompts)


def _paragraphs(doc: str) -> Iterator[str]:
    """Yield the lines of a docstring with those that belong together in one."""
    whole = ""
    for line in doc.splitlines():
        deeper = len(line) - len(line.lstrip()) - (len(whole) - len(whole.lstrip()))
        goes_on = whole and line and not whole.endswith(":") and not line.startswith("- ")
        if goes_on and (deeper > 0 or not line.startswith(" ")):
            whole = f"{whole} {line.lstrip()}"
            continue
        yield from [whole] if whole or not line else []
        whole = line
    yield whole


def _values(cls: type[Any], defaults: _Defaults) -> Iterator[str]:
    """Yield each parameter with its type, its value for each kind of concept, and where that is from."""
    known = fields(cls)
    if not known:
        yield "takes no parameters"
        return
    yield f"values with --model {defaults.model}, by kind of concept where they differ:"
    hints = _hints(cls)
    for field in known:
        values = {of: defaults.told(field, of) for of in KINDS}
        takes = in_words(hints.get(field.name, Any))
        if len(set(values.values())) == 1:
            yield f"  {field.name}: {takes} = {values['object']}"
        else:
            yield f"  {field.name}: {takes}"
            yield from (f"    {of}: {value}" for of, value in values.items())


@dataclass(frozen=True, slots=True)
class _Defaults:
    """Whence the values of one plug-in's parameters are, in the order of :func:`resolved`."""

    kind: Kind
    name: str
    model: str
    info: catalog.ModelInfo
    published: bool

    def told(self, field: Field[Any], of: str) -> str:
        """Return a parameter's value for a kind of concept, and where it is from."""
        own = _plain(_own(field, of))
        if self.kind == "evaluators":
            return f"{own} (default)"
        if field.name in self.info.defaults:
            return f"{_plain(self.info.defaults[field.name])} (model {self.model})"
        theirs = registry.world_defaults(self.info.world, self.kind, self.name, of)
        if field.name in theirs:
            return f"{_plain(theirs[field.name])} ({self.info.world} world)"
        return f"{own} (paper)" if self.published else f"{own} (default)"


def _own(field: Field[Any], of: str) -> Any:
    """Return a class's default for a kind of concept."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return getattr(field.default, of) if isinstance(field.default, ByKind) else field.default


def _plain(value: Any) -> str:
    if value is MISSING:
        return "to be given"
    return "none" if value is None else "empty" if value == "" else str(value)


def _hints(cls: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(cls, include_extras=True)
    except Exception:  # the annotations of a foreign class may name anything, or nothing
        return {}


def in_words(hint: Any) -> str:
    """Return a parameter's type and bounds in plain words: "number > 0"."""
    try:
        schema = TypeAdapter(hint).json_schema()
    except PydanticUserError:
        return "value"
    return _words(schema, schema.get("$defs", {}))


def _words(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _words(defs.get(schema["$ref"].rpartition("/")[2], {}), defs)
    if choices := schema.get("anyOf"):
        return " or ".join(dict.fromkeys(_words(choice, defs) for choice in choices))
    if "enum" in schema or "const" in schema:
        return "one of " + ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("format") in {"path", "file-path", "directory-path"}:
        return "file"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([_TYPES.get(str(schema.get("type")), "value"), " and ".join(bounds)]).strip()
