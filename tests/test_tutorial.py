"""The tutorial: what its page says to write and to type works, from an empty folder to a package in use."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.M | re.S)
INCLUDE = re.compile(r'--8<-- "([^":]+)(?::(\d+):(\d+))?"\n')
PYTHON = "venv/bin/python"
COMMANDS = {
    "bench": [PYTHON, "-m", "bench"],
    "python": [PYTHON],
    "sed": ["sed"],
    "pip install": [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--no-build-isolation"],
}  # fmt: skip


def included(text: str) -> str:
    """Return a block with the files that it includes in their place."""
    (match,) = INCLUDE.findall(text)
    lines = (ROOT / match[0]).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(lines[int(match[1]) - 1 : int(match[2])] if match[1] else lines)


def blocks() -> Iterator[tuple[str, str, str]]:
    for language, title, text in FENCE.findall(PAGE):
        yield language, title, (text.replace("\\\n", "") if language == "sh" else included(text))


def quick(line: str) -> list[str]:
    """Return a command of the page, to be run on a model of random weights and few prompts."""
    start = next(name for name in COMMANDS if line.startswith(f"{name} "))
    words = [*COMMANDS[start], *shlex.split(line.removeprefix(start))]
    if line.startswith("bench run"):
        words = [word for word in words if word not in {"--limit", "20"}]
        words += ["--limit", "2", "--model", "tiny-random"]
    return words + ["1"] * ("learn.py" in line)


def virtual_environment(folder: Path) -> None:
    """Make one that finds what this one has, and where packages can be installed as the page says."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/*/site-packages")
    (packages / "outer.pth").write_text("\n".join(path for path in sys.path if path))


def test_what_is_shown_alone_is_whole() -> None:
    (heart,) = [text for language, title, text in blocks() if language == "python" and not title]
    assert heart.startswith("    def prepare(")
    assert heart.endswith("        return attack\n")


@pytest.mark.slow
def test_the_page_works_from_an_empty_folder(tmp_path: Path) -> None:
    virtual_environment(tmp_path / "venv")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for language, title, text in blocks():
        path, _, end = title.partition(",")
        if language == "sh":
            for line in text.splitlines():
                done = subprocess.run(
                    quick(line), cwd=tmp_path, env=env, capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, (line, done.stdout, done.stderr)
                assert "pip install" not in line or not done.stderr, done.stderr
        elif end:
            with (tmp_path / path).open("a") as file:
                file.write("\n" + text)
        elif path == "lab/lab/fade.py":
            assert (tmp_path / path).read_text() == text
        elif path:
            (tmp_path / path).write_text(text)
    records = [
        record
        for record in Store(tmp_path / "results" / "local")
        if record.cell.task == "lab/pizza"
    ]
    cells = {(record.cell.method.name, record.cell.attack.name) for record in records}
    assert cells == {(m, a) for m in ("none", "lab/fade") for a in ("none", "lab/again")}
    assert {record.status for record in records} == {"ok"}
    assert {*records[0].cell.assets} == {"lab/pizza-weights"}
    assert all(record.measurements["asr"].value is not None for record in records)
    done = subprocess.run(
        [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "lab/tests"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "4 passed" in done.stdout, done.stdout
