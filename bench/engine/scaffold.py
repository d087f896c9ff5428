"""Writes the files of a new plug-in or task: small ones that run, to be changed."""

from __future__ import annotations

import ast
import keyword
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Literal

from bench.core.errors import SpecError
from bench.core.foreign import contract
from bench.core.phrases import article
from bench.core.types import Prompt
from bench.plugins.registry import Ref, create
from bench.tasks.entries import shipped

What = Literal["method", "attack", "evaluator", "task"]
OWN = Path("tasks")
"""Where one's own tasks go in a checkout."""
TEMPLATES = Path(__file__).with_name("templates")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TAKEN = {"bench", "methods", "attacks", "evaluators", "prompts", "results", "tests"}
_INIT = '''"""Plug-ins for erasure-bench. Imported to list what there is: import nothing heavy here."""

from pathlib import Path

HERE = Path(__file__).parent
'''

_IGNORED = "__pycache__/\n*.egg-info/\nbuild/\ndist/\nresults/\n"


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Args:
        files: New files.
        changed: Files that were there, and have a line more.
        check: What to give to ``bench check``.
    """

    files: tuple[Path, ...]
    changed: tuple[Path, ...]
    check: str


def write_new(
    what: What, name: str, out: Path | None = None, *, distribution: bool = False
) -> Written:
    """Write a new plug-in or task.

    Args:
        what: Its kind.
        name: Its name, in small letters: "my-method". A task's is also its concept's.
        out: Folder of the checkout or the distribution; of a task on its own, where it goes: by default
            here, in a checkout its folder ``tasks``.
        distribution: Write it for a distribution of one's own, which is begun if the folder has none.

    Raises:
        SpecError: The name cannot be used, the folder is not what was expected, or a file is there.
    """
    _check_name(name, "a name")
    if what == "task":
        if name in shipped("emoji"):
            raise SpecError(f"the task {name!r} is shipped: `bench show tasks {name}`")
        _check_subject(_words(name))
    if distribution:
        new, changed, check = _in_distribution(what, name, out or Path(name))
    elif what == "task":
        folder = out or (OWN if (Path() / "methods" / "__init__.py").is_file() else Path())
        new, changed, check = _task(name, folder), {}, str(folder / f"{name}.toml")
    else:
        new, changed, check = _in_checkout(what, name, out or Path())
    if there := next((path for path in new if path.exists()), None):
        raise SpecError(f"{there} is there already: choose another name, or move it away")
    for path, text in (*new.items(), *changed.items()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Written(tuple(new), tuple(changed), check)


def _in_checkout(what: What, name: str, root: Path) -> tuple[dict[Path, str], dict[Path, str], str]:
    """Return a plug-in's file, and the table of its folder with its line."""
    family = f"{what}s"
    table = root / family / "__init__.py"
    if not table.is_file():
        raise SpecError(
            f"expected a checkout of the project, with {family}/__init__.py; there is none in "
            f"{root.absolute()}: give --out CHECKOUT, or --distribution for a package of your own"
        )
    text = table.read_text(encoding="utf-8")
    place = f"{family}.{_module(name)}:{_class(name)}"
    if name in _plugins(text):
        raise SpecError(f"{table} has {article(what)} {name!r} already: choose another name")
    added = re.sub(r"\n\}\s*$", f'\n    "{name}": "{place}",\n}}\n', text)
    if _plugins(added).get(name) != place:
        raise SpecError(f"{table}: expected a table PLUGINS at its end, a line for each {what}")
    path = root / family / f"{_module(name)}.py"
    return {path: _filled(f"{what}.py", name)}, {table: added}, name


def _in_distribution(
    what: What, name: str, root: Path
) -> tuple[dict[Path, str], dict[Path, str], str]:
    """Return a plug-in's files, and the project's file with its entry point."""
    project = root / "pyproject.toml"
    new: dict[Path, str] = {}
    changed: dict[Path, str] = {}
    if project.exists():
        said = _toml(project.read_text(encoding="utf-8"), project)
        owner = str(said.get("project", {}).get("name", ""))
    else:
        owner = root.resolve().name
    _check_name(owner, f"{project}: a distribution's name")
    package = _module(owner)
    if package in _TAKEN | sys.stdlib_module_names:
        raise SpecError(f"a package {package!r} would hide another one: choose another --out")
    values = {"distribution": owner, "package": package}
    inside = root / package
    files = {
        project: _template("pyproject.toml.txt").substitute(values),
        root / "tests" / "test_plugins.py": _template("test_plugins.py.txt").substitute(values),
        inside / "__init__.py": _INIT,
    }
    if not project.exists():
        files |= {
            root / "README.md": _template("README.md.txt").substitute(values),
            root / ".gitignore": _IGNORED,
        }
    for path, text in files.items():
        if not path.exists():
            new[path] = text
    if what == "task":
        new |= _task(name, inside)
        constant = _module(name).upper()
        place = f"{package}:{constant}"
        _add(new, changed, inside / "__init__.py", f'{constant} = HERE / "{name}.toml"\n')
    else:
        new[inside / f"{_module(name)}.py"] = _filled(f"{what}.py", name)
        place = f"{package}.{_module(name)}:{_class(name)}"
    _announce(new, changed, project, (f"bench.{what}s", name, place))
    return new, changed, f"{owner}/{name}"


def _add(new: dict[Path, str], changed: dict[Path, str], path: Path, line: str) -> None:
    """Add a line at the end of a file, a new one or one that is there."""
    if path in new:
        new[path] += line
    else:
        changed[path] = path.read_text(encoding="utf-8").rstrip("\n") + "\n" + line


def _announce(
    new: dict[Path, str], changed: dict[Path, str], project: Path, point: tuple[str, str, str]
) -> None:
    """Add an entry point to a project's file."""
    group, name, place = point
    header, line = f'[project.entry-points."{group}"]', f'{name} = "{place}"'
    text = new.get(project) or project.read_text(encoding="utf-8")
    points = _toml(text, project).get("project", {}).get("entry-points", {})
    if name in points.get(group, {}):
        raise SpecError(f"{project} announces {name!r} in {group} already: choose another name")
    if header in text:
        text = text.replace(header, f"{header}\n{line}", 1)
    else:
        text = f"{text.rstrip()}\n\n{header}\n{line}\n"
    if _toml(text, project)["project"]["entry-points"].get(group, {}).get(name) != place:
        raise SpecError(f"{project}: add {line} to {header} yourself; it cannot be done here")
    (new if project in new else changed)[project] = text


def _toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise SpecError(f"{path}: expected a TOML file: {exc}") from exc


def _task(name: str, folder: Path) -> dict[Path, str]:
    """Return a task's file and its prompts."""
    subject = _words(name)
    texts = (
        article(subject),
        f"a photograph of {article(subject)}",
        f"{article(subject)} in the snow",
        f"two {subject}s",
    )
    rows = "".join(f"{n},{text},{n}\n" for n, text in enumerate(texts))
    values = {"anchor": "house" if subject == "apple" else "apple", "subject": subject}
    return {
        folder / f"{name}.toml": Template(_filled("task.toml", name)).substitute(values),
        folder / f"{name}.csv": f"id,prompt,seed\n{rows}",
    }  # fmt: skip


def _template(file: str) -> Template:
    return Template((TEMPLATES / file).read_text(encoding="utf-8"))


def _filled(file: str, name: str) -> str:
    """Return a template, which is a file that runs, with another name."""
    text = (TEMPLATES / file).read_text(encoding="utf-8")
    text = text.replace('Card("Fade"', f'Card("{_words(name).capitalize()}"')
    text = text.replace('"""Fade:', f'"""{_words(name).capitalize()}:')
    return re.sub(r"\bfade\b", name, re.sub(r"\bFade\b", _class(name), text))


def _plugins(text: str) -> Mapping[str, str]:
    """Return the table that a module of a family assigns to PLUGINS."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PLUGINS":
            table: dict[str, str] = ast.literal_eval(node.value)
            return table
    return {}


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > 40:
        raise SpecError(
            f"{what}: expected small letters, digits and single hyphens, such as my-method, "
            f"got {name!r:.60}"
        )
    if keyword.iskeyword(_module(name)):
        raise SpecError(f"{what}: {name!r} is a word of Python: choose another")


def _check_subject(subject: str) -> None:
    """Refuse a concept that the emoji world's judge does not know: no image could show it."""
    judge = create("evaluators", Ref("emoji-subject"))
    try:
        with contract("evaluator emoji-subject"):
            judge.check([Prompt("0", "", 0, label=subject)], None)
    except SpecError as exc:
        raise SpecError(
            f"{exc}. For another concept take one of these, and change world and judge in the file"
        ) from exc


def _module(name: str) -> str:
    return name.replace("-", "_")


def _words(name: str) -> str:
    return name.replace("-", " ")


def _class(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))
