"""Writes the pages that are made of the code: plug-ins, tasks, commands, results. A hook of mkdocs.

``python docs/pages.py`` writes them for other builders, which run no hooks.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from shutil import copyfile
from typing import Any, get_args

from generated import output
from typer.main import get_command

from bench.cli.commands import app
from bench.core.types import World
from bench.emoji import WEIGHTS
from bench.emoji.world import SUBJECTS
from bench.errors import EXIT_CODES, BenchError
from bench.plugins import registry
from bench.report import describe, render
from bench.report.frame import Figure, Line, Table
from bench.report.tables import cost_table
from bench.store.record import Record
from bench.store.store import Store
from bench.tasks import tasks

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
MODELS = {"emoji world": "emoji-sd", "photo world": "sd14"}
TITLES = {"methods": "Methods", "attacks": "Attacks", "evaluators": "Evaluators"}
_REFERENCE = re.compile(r"``((?:methods|attacks|evaluators)\._\w+)``")
_USE = """\
Every command takes `--quiet` and `--verbose`; listings and reports take `--json`.
`bench --install-completion` completes names in the shell. Parameters of a plug-in are given as
`--method esd:steps=100,lr=5e-5`; unknown or ill-typed ones are refused."""
_INTERVAL = re.compile(r"(<td[^>]*>[^<]*\[[\d.]+)-([\d.]+\])")
_LIST = re.compile(r"(?m)^((?!- | ).+)\n(?=- )")


def on_config(config: Any) -> Any:
    """Write the pages before mkdocs looks for them, and complete the navigation.

    The pages of a folder come below its index; a page that is named nowhere stands under "Use".
    """
    write()
    sections = {title: entries for entry in config.nav for title, entries in entry.items()}
    named = str(sections)
    others = sorted(p.name for p in PAGES.parent.glob("*.md") if f"'{p.name}'" not in named)
    sections["Use"] += others
    sections["Reference"][:] = map(_with_folder, sections["Reference"])
    return config


def on_page_content(html: str, **_: Any) -> str:
    """Keep an interval in a table on one line: a hyphen would break it."""
    return _INTERVAL.sub("\\1\N{NON-BREAKING HYPHEN}\\2", html)


def write() -> None:
    """Write all pages below ``docs/reference``; a page whose content is the same is left alone."""
    records = _records("reference")
    pages = dict(_plugin_pages(records)) | dict(_task_pages())
    pages |= {"commands.md": _commands(), "exit-codes.md": _exit_codes()}
    pages |= {"results.md": _results(), "others.md": _others(), "emoji-sd.md": _emoji_sd()}
    for path in set(PAGES.rglob("*.md")) - {PAGES / name for name in pages}:
        path.unlink()
    for name, text in pages.items():
        path = PAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    copyfile(WEIGHTS / "samples.png", PAGES / "samples.png")


def _with_folder(entry: Any) -> Any:
    """Return an entry of the navigation; an index is followed by the other pages of its folder."""
    ((title, page),) = entry.items()
    if not page.endswith("/index.md"):
        return entry
    folder = PAGES.parent / Path(page).parent
    others = sorted(path for path in folder.glob("*.md") if path.name != "index.md")
    return {title: [page, *(path.relative_to(PAGES.parent).as_posix() for path in others)]}


def _records(*folders: str) -> list[Record]:
    found = (ROOT / "results" / folder for folder in folders)
    return [record for folder in found if folder.is_dir() for record in Store(folder)]


# ---------------------------------------------------------------------- plug-ins
def _plugin_pages(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    for kind in registry.KINDS:
        names = [name for name in registry.names(kind) if "/" not in name]
        lines = [(f"[{name}]({name}.md)", describe.does(kind, name)) for name in names]
        page = f"# {TITLES[kind]}\n\n{_table((kind.removesuffix('s'), 'what it does'), lines)}"
        yield f"{kind}/index.md", page
        for name in names:
            yield f"{kind}/{name}.md", "\n\n".join(_plugin(kind, name, records)) + "\n"


def _plugin(kind: registry.Kind, name: str, records: Sequence[Record]) -> Iterator[str]:
    worlds = {world: describe.plugin(kind, name, model) for world, model in MODELS.items()}
    about = worlds["photo world"]
    yield f"# {name}"
    yield f"{about.does}."
    facts = {
        "paper" if about.paper.startswith("http") else "from": _linked(about),
        "official code": f"<{about.code}>" if about.code else "",
        "threat model" if kind == "attacks" else "looks at": about.scope,
        "version": str(about.version),
        "source": f"`{registry.names(kind)[name].partition(':')[0].replace('.', '/')}.py`",
    }
    yield "\n".join(f"- {key}: {value}" for key, value in facts.items() if value)
    yield _markdown(about.text)
    for module in dict.fromkeys(_REFERENCE.findall(about.text)):
        yield _markdown(importlib.import_module(module).__doc__ or "")
    yield from _deviations(kind, name)
    if about.parameters:
        yield "## Parameters"
        columns = worlds if kind != "evaluators" else {"default": about}
        lines = [
            (f"`{own.name}`", own.takes, *(_values(p.parameters[n]) for p in columns.values()), own.about)
            for n, own in enumerate(about.parameters)
        ]  # fmt: skip
        yield _table(("parameter", "takes", *columns, "what it does"), lines)
    yield from _cost(kind, name, records)


def _linked(about: describe.Plugin) -> str:
    """Return the source of a plug-in; its title alone often says what its name does."""
    if about.paper.startswith("http"):
        return f"[{about.title}]({about.paper})"
    return about.paper


def _values(p: describe.Parameter) -> str:
    """Return a parameter's value, or its values by kind of concept."""
    if len(set(p.values.values())) == 1:
        return p.values["object"]
    return "<br>".join(f"{of}: {value}" for of, value in p.values.items())


def _deviations(kind: registry.Kind, name: str) -> Iterator[str]:
    """Yield what a method says of files that are not shipped, with the concepts of the photo world."""
    cls = registry.load(kind, name)
    if not hasattr(cls, "deviations"):
        return
    found: dict[str, None] = {}
    for task in tasks.task_names("photo"):
        if concept := tasks.concept_of(task, "photo"):
            ref = registry.resolved(kind, registry.Ref(name), concept, "photo")
            found |= dict.fromkeys(registry.create(kind, ref).deviations(concept))
    if found:
        yield "## What differs for want of files"
        yield "\n".join(f"- {line}" for line in found)


def _cost(kind: registry.Kind, name: str, records: Sequence[Record]) -> Iterator[str]:
    """Yield what a method or an attack cost in the committed records."""
    of = {"methods": "method", "attacks": "attack"}.get(kind, "")
    spent = [r for r in records if r.status == "ok" and of and getattr(r.cell, of).name == name]
    if kind == "attacks" and any(r.cell.attacked for r in spent):
        yield "## Cost in the reference records"
        yield render.markdown(cost_table(spent)).partition("\n\n")[2]
    erased = {r.erasure["digest"]: r for r in spent if r.erasure and not r.cell.attacked}
    if kind == "methods" and erased:
        yield "## Cost in the reference records"
        keys = ("seconds", "tensors", "zeroed", "bytes")
        lines = tuple(
            Line((r.cell.concept.name,), tuple(Figure(r.erasure[key], digits=0) for key in keys))
            for r in sorted(erased.values(), key=lambda r: r.cell.concept.name)
        )
        columns = ("s", "tensors changed", "weights zeroed", "bytes of the delta")
        legend = "emoji-sd on two CPU cores"
        yield render.markdown(Table("", ("concept",), columns, lines, legend)).partition("\n\n")[2]


# ---------------------------------------------------------------------- tasks
def _task_pages() -> Iterator[tuple[str, str]]:
    lines = []
    for world in get_args(World):
        for name in tasks.task_names(world):
            if "/" not in name:
                lines.append((f"[{name}]({world}-{name}.md)", tasks.about_task(name, world)))
                yield f"tasks/{world}-{name}.md", "\n\n".join(_task(name, world)) + "\n"
    yield "tasks/index.md", f"# Tasks\n\n{_table(('task', 'what it is'), lines)}"


def _task(name: str, world: World) -> Iterator[str]:
    entry, concept = tasks.find(name, world), tasks.concept_of(name, world)
    yield f"# {name}, {world} world"
    yield f"{tasks.about_task(name, world)}."
    facts = {
        "role": entry.role,
        "concept": f"{concept.name} ({concept.kind})" if concept else "",
        "words for it": ", ".join(concept.terms) if concept else "",
        "anchor": concept.anchor if concept else "",
        "prompts": f"`{entry.prompts}`",
        "guidance": "each prompt's own" if entry.guidance == "own" else entry.guidance,
        "paper": entry.paper.get("about", ""),
    }
    yield "\n".join(f"- {key}: {value}" for key, value in facts.items() if value)
    lines = [(m.metric, f"`{m.evaluator}`", m.reduce) for m in entry.measures]
    yield "## What is measured"
    yield _table(("measure", "evaluator", "of all images"), lines)
    try:
        task = tasks.load_task(entry, world)
    except BenchError:  # its prompts are not shipped
        return
    if task.deviations:
        yield "## What differs from the paper"
        yield "\n".join(f"- {line}" for line in task.deviations)
    if world == "emoji" or (concept and concept.kind != "nsfw"):
        yield "## The first prompts"
        yield "\n".join(f"- `{prompt.id}` {prompt.text}" for prompt in task.prompts[:3])


# ---------------------------------------------------------------------- commands, codes, results
def _commands() -> str:
    blocks = [
        f"## {' '.join(('bench', *path))}\n\n```text\n{output([*path, '--help'])}\n```"
        for path in command_paths()
    ]
    return "\n\n".join(["# Commands", _USE, *blocks]) + "\n"


def command_paths(group: Any = None, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of the app itself and of each of its commands."""
    group = group or get_command(app)
    yield above
    for name, command in getattr(group, "commands", {}).items():
        yield from command_paths(command, (*above, name))


def _exit_codes() -> str:
    return "# Exit codes\n\n" + _table(
        ("code", "meaning"), [(str(code), meaning) for code, meaning in EXIT_CODES.items()]
    )


def _results() -> str:
    reference = ("--results", "results/reference")
    parts = ["# Results", "## Reference records", *_report(*reference)]
    parts += ["## What an erasure does to other subjects", *_report("--ripple", *reference)]
    parts.append(
        "## The paper's tables\n\n"
        "The lines called `paper` are its numbers. Ours are of emoji-sd here, and no reproduction."
    )
    return "\n\n".join([*parts, *_report("paper", *reference)])


def _report(*words: str) -> Iterator[str]:
    """Yield a command, and the tables that it prints."""
    words = ("report", *words)
    yield f"`bench {' '.join(words)}`"
    with chdir(ROOT):
        yield output([*words, "--format", "markdown"])


def _emoji_sd() -> str:
    """Return the model's card, and what its samples show."""
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    names = [subject.name for subject in SUBJECTS]
    rows = "; ".join(", ".join(names[i : i + 8]) for i in range(0, len(names), 8))
    return (
        f"{card}\n## Samples\n\n![8 x 8 samples](samples.png)\n\n"
        f"`python -m bench.emoji.recipe.measure samples` draws them: the {len(names)} subjects ({rows}), "
        '"nudity" twice, and the first eight subjects in the styles of van Gogh, Monet and pixel art.\n'
    )


def _others() -> str:
    parts = ["# Models, suites, figures"]
    for what in ("models", "suites", "figures"):
        lines = [(f"`{name}`", about) for name, about in describe.listing(what, "emoji")]
        parts.append(f"## {what.capitalize()}\n\n{_table(('name', 'what it is'), lines)}")
    return "\n\n".join(parts)


# ---------------------------------------------------------------------- Markdown
def _markdown(text: str) -> str:
    """Return a docstring as Markdown: a list stands apart, a block of code as well."""
    return _LIST.sub(r"\1\n\n", text.replace("::\n", ":\n"))


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows
    )


if __name__ == "__main__":
    write()
