"""Writes what commands print into pages that people write, and says which of it is not current.

Between a line ``<!-- generated: COMMAND -->`` and the next ``<!-- end -->`` stands what COMMAND gives:

- ``bench ...``: what this command prints in the project's folder, 80 columns wide.
- ``plug-ins``: the names of all that is here, with their papers.
- ``python``: what the block of Python above prints in an empty folder. A model runs: a minute or more.

``python docs/generated.py`` writes all blocks; ``--check`` writes none, names the pages of which one is
not current, and leaves out those for which a model runs.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stdout
from io import StringIO
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args
from unittest.mock import patch

from typer.testing import CliRunner

from bench.cli.commands import app
from bench.cli.terminal import out
from bench.core.types import World
from bench.plugins import registry
from bench.report import describe
from bench.tasks import tasks

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "python"
_BLOCK = re.compile(r"(?ms)^(<!-- generated: ([^\n]+?) -->)\n.*?^(<!-- end -->)$")


def pages() -> list[Path]:
    """Return the pages that people write."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str, *, models: bool = True) -> str:
    """Return a page with its blocks as they are now.

    Args:
        text: The page.
        models: Whether blocks are made for which a model runs; otherwise they stay as they are.
    """

    def block(found: re.Match[str]) -> str:
        begin, command, end = found.groups()
        if command == PYTHON and not models:
            return found[0]
        return f"{begin}\n\n{_made(command, text[: found.start()])}\n\n{end}"

    return _BLOCK.sub(block, text)


def _made(command: str, before: str) -> str:
    if command == PYTHON:
        return _fenced(printed(before))
    if command == "plug-ins":
        return "\n".join(_plug_ins())
    with chdir(ROOT):
        said = output(shlex.split(command)[1:])
    if "--format markdown" in command:
        return f"{_fenced(_folded(command), 'sh')}\n\n{said}"
    return _fenced(f"$ {command}\n{said}")


def output(words: Sequence[str]) -> str:
    """Return what ``bench WORDS`` prints on a terminal of 80 columns, without colours.

    Raises:
        RuntimeError: The command failed.
    """
    env = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    with patch.object(out, "_width", 80):
        said = CliRunner().invoke(app, [*words], prog_name="bench", env=env)
    if said.exit_code:
        raise RuntimeError(f"bench {shlex.join(words)}: {said.output}") from said.exception
    return "\n".join(line.rstrip() for line in said.stdout.strip().splitlines())


def printed(before: str) -> str:
    """Return what the last block of Python in a text prints."""
    code = before.rpartition("```python\n")[2].partition("```")[0]
    said = StringIO()
    with TemporaryDirectory() as folder, chdir(folder), redirect_stdout(said):
        exec(compile(code, "the page's example", "exec"), {})
    return said.getvalue().strip()


def _fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"


def _folded(command: str) -> str:
    """Return a command in lines that a shell reads as one."""
    parts = command.replace(" --", "\n--").splitlines()
    folded = [parts[0]]
    for part in parts[1:]:
        if len(folded[-1]) + len(part) < 96:
            folded[-1] += f" {part}"
        else:
            folded.append(f"    {part}")
    return " \\\n".join(folded)


def _plug_ins() -> Iterator[str]:
    yield "| | |"
    yield "| --- | --- |"
    yield f"| methods | {_names('methods', registry.names('methods'))} |"
    scopes = {name: _about("attacks", name).scope for name in registry.names("attacks")}
    for scope, names in groupby(sorted(scopes, key=lambda name: scopes[name]), scopes.get):
        yield f"| attacks, {scope} | {_names('attacks', names)} |"
    for world in get_args(World):
        own = [
            n for n in tasks.task_names(world) if "/" not in n and not n.endswith("-calibration")
        ]
        yield f"| tasks, {world} world | {', '.join(f'`{name}`' for name in own)} |"
    yield f"| judges and measures | {_names('evaluators', registry.names('evaluators'))} |"


def _names(kind: registry.Kind, names: Iterator[str]) -> str:
    own = [name for name in names if "/" not in name]
    papers = {name: _about(kind, name).paper for name in own}
    return ", ".join(
        f"[`{name}`]({paper})" if paper.startswith("http") else f"`{name}`"
        for name, paper in papers.items()
    )


def _about(kind: registry.Kind, name: str) -> describe.Plugin:
    return describe.plugin(kind, name, "sd14")


def main(check: bool) -> int:
    """Write all pages, or name those that are not current."""
    stale = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = filled(text, models=not check)
        if new == text:
            continue
        stale += 1
        sys.stdout.write(f"{page.relative_to(ROOT)}: {'not current' if check else 'written'}\n")
        if not check:
            page.write_text(new, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
