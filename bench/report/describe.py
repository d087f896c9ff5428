"""What there is: plug-ins with the values that they will use, tasks and models; as data, and in words."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from bench.core.errors import BenchError
from bench.core.types import ByKind, Concept, Threat, World
from bench.plan import matrix
from bench.plan.floors import most_images
from bench.plugins import registry
from bench.plugins.registry import Kind, Ref
from bench.report.figures.catalog import FIGURES, figure_about
from bench.report.statistics import detectable, power
from bench.sources import catalog
from bench.tasks import tasks

What = Literal["methods", "attacks", "evaluators", "tasks", "models", "figures", "suites"]
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
_ROLE = re.compile(r":\w+:`~?([^`]+)`")  # a cross-reference in a docstring, such as :mod:`bench`
_ARGUMENT = re.compile(r" {4}(\w+): (.*)")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a plug-in.

    Args:
        name: Its name.
        takes: Its type and bounds in words.
        about: What it does, as the docstring says.
        values: Its value for each kind of concept, and who chose it: "0.01 (paper)".
    """

    name: str
    takes: str
    about: str
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plugin:
    """What is known of a plug-in.

    Args:
        name: Its name.
        does: What it does, in one line.
        title: Its card's title, mostly that of its paper.
        paper: Address of the paper.
        code: Address of the official code.
        version: Its card's version.
        scope: What an attack sees and changes, or what an evaluator looks at; empty for a method.
        text: What its docstring says, without the parameters; deviations from the paper are there.
        parameters: Its parameters, with the values that they have for one model.
    """

    name: str
    does: str
    title: str
    paper: str
    code: str
    version: int
    scope: str
    text: str
    parameters: tuple[Parameter, ...]


def listing(what: What, world: World) -> Iterator[tuple[str, str]]:
    """Yield names, and what each is; a plug-in that cannot be loaded is listed with the cause."""
    if what == "suites":
        yield from (
            (name, matrix.read_matrix(path).about) for name, path in matrix.suites().items()
        )
    elif what == "models":
        yield from ((name, info.about) for name, info in catalog.MODELS.items())
    elif what == "figures":
        yield from FIGURES.items()
    elif what == "tasks":
        yield from ((name, tasks.about_task(name, world)) for name in tasks.task_names(world))
    else:
        for name in registry.names(what):
            try:
                yield name, does(what, name)
            except BenchError as exc:
                yield name, f"[broken] {exc}"


def names_of(what: What) -> list[str]:
    """Return the names of a kind; of tasks those of all worlds."""
    if what in registry.KINDS:
        return list(registry.names(what))
    if what == "tasks":
        return list(dict.fromkeys(n for world in get_args(World) for n in tasks.task_names(world)))
    others: dict[What, list[str]] = {
        "models": list(catalog.MODELS),
        "figures": list(FIGURES),
        "suites": list(matrix.suites()),
    }
    return others[what]


def does(kind: Kind, name: str) -> str:
    """Return what a plug-in does: the first line of its file, or of its class if the file has several."""
    cls, table = registry.load(kind, name), registry.names(kind)
    siblings = [place for place in table.values() if place.partition(":")[0] == cls.__module__]
    source = cls if len(siblings) > 1 else sys.modules[cls.__module__]
    doc = vars(source).get("__doc__")
    doc = doc.strip() if isinstance(doc, str) else ""
    written = doc and not doc.startswith(f"{cls.__name__}(")  # else dataclasses made it
    return doc.splitlines()[0].rstrip(".") if written else str(cls.card.title)


def details(what: What, name: str, model: str, world: World | None) -> Iterator[str]:
    """Yield the lines of what is known of a plug-in, a task or a model.

    Args:
        what: Its kind.
        name: Its name.
        model: The model with which a plug-in would be used.
        world: The world of that model, where it fits both.
    """
    if what == "suites":
        yield from _suite(name)
        return
    info = catalog.model_info(model, world)
    if what == "models":
        yield from _model(name)
    elif what == "figures":
        yield f"{name}: {figure_about(name)}"
        yield f"bench figure {name} --out FILE.png|svg|pdf"
    elif what == "tasks":
        yield from _task(name, tasks.home(name, info.world))
    else:
        lines = _lines(plugin(what, name, model, world), model)
        yield from (line.replace("``", "") for line in lines)
        yield from _images(name, info) if what == "attacks" else ()


def facts(what: What, name: str, model: str, world: World | None) -> dict[str, Any]:
    """Return the same as :func:`details`, as values that JSON can hold; of prompts their number."""
    info = catalog.model_info(model, world)
    if what == "suites":
        return {"name": name, **asdict(matrix.suite(name))}
    if what == "models":
        return {"name": name, **asdict(catalog.model_info(name))}
    if what == "figures":
        return {"name": name, "about": figure_about(name)}
    if what == "tasks":
        task = tasks.load_task(name, tasks.home(name, info.world))
        texts = {"measures": [f"{m.metric}: {m.evaluator} ({m.reduce})" for m in task.measures]}
        least = detectable(len(task.prompts)) if task.role == "target" else None
        sizes = {"prompts": len(task.prompts), "rows": len(task.rows)}
        return asdict(task) | sizes | texts | {"detectable": least and least._asdict()}
    return asdict(plugin(what, name, model, world))


def plugin(kind: Kind, name: str, model: str, world: World | None = None) -> Plugin:
    """Return what is known of a plug-in; its parameters have the values that a model gives them."""
    cls, info = registry.load(kind, name), catalog.model_info(model, world)
    read = [_of_class(base) for base in cls.__mro__[:-1]]
    about = {key: text for _, args in reversed(read) for key, text in args.items()}
    told = {of: _told(kind, name, model, info, of) for of in KINDS}
    types = hints(cls)
    threat = getattr(cls, "threat", None)
    sees = f"{threat.access} box, {threat.space}" if isinstance(threat, Threat) else ""
    return Plugin(
        name,
        does(kind, name),
        cls.card.title,
        cls.card.paper,
        cls.card.code,
        cls.card.version,
        sees or str(getattr(cls, "scope", "")),
        "\n\n".join(text for text, _ in read if text),
        tuple(
            Parameter(
                field.name,
                in_words(types.get(field.name, Any)),
                about.get(field.name, ""),
                {of: told[of][field.name] for of in KINDS},
            )
            for field in fields(cls)
        ),
    )


def _of_class(cls: type) -> tuple[str, dict[str, str]]:
    """Read a class's docstring, without its summary if the class is only a part of a plug-in."""
    doc = vars(cls).get("__doc__")
    text, args = _read(doc) if isinstance(doc, str) else ("", {})
    return text if "card" in vars(cls) else text.partition("\n\n")[2], args


def _read(doc: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text and what it says of each argument."""
    text: list[str] = []
    args: dict[str, str] = {}
    name, inside = "", False
    for line in _ROLE.sub(r"``\1``", inspect.cleandoc(doc)).splitlines():
        if line == "Args:":
            inside = True
        elif inside and (match := _ARGUMENT.fullmatch(line)):
            name, args[match[1]] = match.groups()
        elif inside and line.startswith("    ") and name:
            args[name] += f" {line.strip()}"
        else:
            inside = inside and not line
            text.append(line)
    return "\n".join(text).strip(), args


def _lines(about: Plugin, model: str) -> Iterator[str]:
    yield f"{about.name}: {about.does}"
    yield from filter(None, (about.title, about.paper, about.code, about.scope))
    yield from _paragraphs(about.text)
    if not about.parameters:
        yield "takes no parameters"
        return
    yield f"values with --model {model}, by kind of concept where they differ:"
    for p in about.parameters:
        same = len(set(p.values.values())) == 1
        yield f"  {p.name}: {p.takes}" + (f" = {p.values['object']}" if same else "")
        yield from () if same else (f"    {of}: {value}" for of, value in p.values.items())
        yield from [f"    {p.about}"] if p.about else []


def _images(name: str, info: catalog.ModelInfo) -> Iterator[str]:
    """Yield how many images of a prompt an attack makes at most, if it says so; by kind if that matters."""
    if not hasattr(registry.load("attacks", name), "most_images"):
        return
    by_kind = {
        of: most_images(
            registry.resolved("attacks", Ref(name), Concept("", of), info.world, info.defaults)
        )
        for of in KINDS
    }
    for images in dict.fromkeys(by_kind.values()):
        kinds = ", ".join(of for of in KINDS if by_kind[of] == images)
        which = "" if len(set(by_kind.values())) == 1 else f" ({kinds})"
        yield f"makes at most {images} images of a prompt, its own included{which}: see --floors"


def _model(name: str) -> Iterator[str]:
    info = catalog.model_info(name)
    yield f"{name}: {info.about}"
    yield f"world {info.world}, from {info.source}"
    yield f"draws with {info.sampling.sampler}, {info.sampling.steps} steps, {info.sampling.size} px"
    yield "the built-in safety checker is off: images are judged as they are made"


def _suite(name: str) -> Iterator[str]:
    found = matrix.suite(name)
    yield f"{name}: {found.about}"
    for part in found.parts:
        yield ""
        for field in fields(part):
            value = getattr(part, field.name)
            if value != field.default or field.name == "model":
                several = isinstance(value, tuple)
                shown = ", ".join(map(str, value)) if several else str(value)
                yield f"{field.name.replace('_', '-')}: {shown}"


def _concept(concept: Concept) -> Iterator[str]:
    anchor = f", in its place {concept.anchor!r}" if concept.anchor else ""
    yield f"concept: {concept.name} ({concept.kind}{anchor})"
    if concept.terms:
        yield f"named by {', '.join(concept.terms)}"


def _task(name: str, world: World) -> Iterator[str]:
    task = tasks.load_task(name, world)
    yield f"{task.name}: {task.role}"
    yield from _concept(task.concept) if task.concept else ()
    yield f"prompts: {task.source}"
    if task.paper:
        yield f"paper: {task.paper}"
    yield from (f"differs from it: {line}" for line in task.deviations)
    yield from (f"{m.metric}: {m.evaluator} ({m.reduce})" for m in task.measures)
    yield from _detectable(len(task.prompts)) if task.role == "target" else ()
    yield from (f"{p.id}  seed {p.seed}  guidance {p.guidance:g}  {p.text}" for p in task.prompts)


def _detectable(n: int) -> Iterator[str]:
    """Yield what n prompts can show: the smallest difference between two methods, and how often."""
    least = [(tests, detectable(n, tests)) for tests in (1, 10)]
    said = [
        f"{found.prompts} prompts ({found.share:.0%}) "
        + ("in one test" if tests == 1 else f"in the first of {tests} (Holm)")
        for tests, found in least
        if found
    ]
    yield f"N={n}: the smallest difference between two methods that can be shown is " + (
        ", ".join(said) or "none: too few prompts"
    )
    yield (
        f"a true difference of 15% is shown in {power(n, 0.15):.0%} of cases, one of 20% in "
        f"{power(n, 0.20):.0%}, if 10% of the prompts differ the other way round"
    )


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


def hints(cls: type[Any]) -> dict[str, Any]:
    """Return the types of a class's fields by name, as they are written; of a broken class none."""
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
