"""What there is, in words: plug-ins with the values that they will use, tasks and models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from bench.core.types import ByKind, World
from bench.errors import BenchError
from bench.plugins import registry
from bench.plugins.registry import Kind
from bench.report.figures.catalog import FIGURES, figure_about
from bench.sources import catalog
from bench.tasks import tasks

What = Literal["methods", "attacks", "evaluators", "tasks", "models", "figures"]
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
    elif what == "figures":
        yield from FIGURES.items()
    elif what == "tasks":
        yield from ((name, tasks.about_task(name, world)) for name in tasks.task_names(world))
    else:
        for name in registry.names(what):
            yield name, _title(what, name)


def details(what: What, name: str, model: str, world: World | None) -> Iterator[str]:
    """Yield the lines of what is known of a plug-in, a task or a model.

    Args:
        what: Its kind.
        name: Its name.
        model: The model with which a plug-in would be used.
        world: The world of that model, where it fits both.
    """
    info = catalog.model_info(model, world)
    if what == "models":
        yield from _model(name)
    elif what == "figures":
        yield f"{name}: {figure_about(name)}"
        yield f"bench figure {name} --out FILE.png|svg|pdf"
    elif what == "tasks":
        yield from _task(name, tasks.home(name, info.world))
    else:
        cls = registry.load(what, name)
        yield f"{name}: {cls.card.title}"
        yield from (str(line) for line in (cls.card.paper, cls.card.code) if line)
        docs = [vars(base).get("__doc__") for base in cls.__mro__[:-1]]
        yield from (line for doc in docs if isinstance(doc, str)
                    for line in _paragraphs(inspect.cleandoc(doc)))  # fmt: skip
        if not fields(cls):
            yield "takes no parameters"
            return
        yield f"values with --model {model}, by kind of concept where they differ:"
        yield from _values(cls, {of: _told(what, name, model, info, of) for of in KINDS})


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
    """Yield the lines of a docstring; the lines of one paragraph are joined."""
    whole = ""
    for line in doc.splitlines():
        deeper = len(line) - len(line.lstrip()) - (len(whole) - len(whole.lstrip()))
        continues = whole and line and not whole.endswith(":") and not line.startswith("- ")
        if continues and (deeper > 0 or not line.startswith(" ")):
            whole = f"{whole} {line.lstrip()}"
            continue
        yield from [whole] if whole or not line else []
        whole = line
    yield whole


def _values(cls: type[Any], told: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield each parameter with its type and its values, ``told`` for each kind of concept."""
    hints = _hints(cls)
    for field in fields(cls):
        values = {of: told[of][field.name] for of in KINDS}
        takes = in_words(hints.get(field.name, Any))
        if len(set(values.values())) == 1:
            yield f"  {field.name}: {takes} = {values['object']}"
        else:
            yield f"  {field.name}: {takes}"
            yield from (f"    {of}: {value}" for of, value in values.items())


def _told(kind: Kind, name: str, model: str, info: catalog.ModelInfo, of: str) -> dict[str, str]:
    """Return each parameter's value for a kind of concept, and who chose it.

    The order is that of :func:`bench.plugins.registry.resolved`; judges have their own values only.
    """
    cls = registry.load(kind, name)
    judge = kind == "evaluators"
    origin = "paper" if cls.card.paper and not judge else "default"
    found = {field.name: (_own(field, of), origin) for field in fields(cls)}
    if not judge:
        theirs = registry.world_defaults(info.world, kind, name, of)
        for values, chosen in ((theirs, f"{info.world} world"), (info.defaults, f"model {model}")):
            found |= {key: (value, chosen) for key, value in values.items() if key in found}
    return {key: f"{_plain(value)} ({chosen})" for key, (value, chosen) in found.items()}


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
