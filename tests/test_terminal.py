"""What the commands print: 80 columns, JSON, more or less of it, without a terminal, completed names."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fakes
import pytest
from rich.console import Console
from typer.main import get_command

from bench import cli as module
from bench.cli.commands import app
from bench.engine.display import bars
from bench.errors import EXIT_CODES
from bench.plugins.registry import names
from bench.sources.catalog import MODELS

ROOT = Path(__file__).resolve().parent.parent
ONE = ("run", "--model", "tiny-random", "--limit", "2", "--method", "none", "--attack", "none",
       "--task", "church", "--no-images")  # fmt: skip


def paths(group: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield above
    for name, command in getattr(group, "commands", {}).items():
        yield from paths(command, (*above, name))


COMMANDS = list(paths(get_command(app)))
LISTINGS = [
    *(
        ("list", what)
        for what in ("methods", "attacks", "evaluators", "tasks", "models", "figures")
    ),
    ("list", "tasks", "--model", "sd14"),
    ("show", "methods", "esd"),
    ("show", "attacks", "unlearndiff"),
    ("show", "evaluators", "nudenet"),
    ("show", "tasks", "nudity"),
    ("show", "models", "sd21"),
    ("assets",),
    ("plan", "--method", "esd", "--method", "esd:steps=5", "--attack", "p4d", "--task", "church"),
    ("cache", "size"),
    ("figure",),
]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command as in a pipe, 80 columns wide; return what it prints."""

    def call(*args: str) -> str:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr("sys.argv", ["bench", *args])
        with pytest.raises(SystemExit) as stop:
            module.main()
        said = capsys.readouterr()
        assert (stop.value.code, said.err) == (0, "")
        return said.out

    return call


def too_wide(text: str) -> list[str]:
    """Return the lines that are wider than 80 columns; a single long word cannot be made narrower."""
    return [line for line in text.splitlines() if len(line) > 80 and len(line.split()) > 1]


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_fits_and_has_an_example(printed, path: tuple[str, ...]) -> None:
    text = printed(*path, "--help")
    assert too_wide(text) == []
    if "COMMAND" not in text.partition("\n\n")[0]:
        assert f"Example: bench {' '.join(path)}" in re.sub(r"\s+", " ", text)
        assert "--quiet" in text


@pytest.mark.parametrize("args", LISTINGS, ids=" ".join)
def test_listings_fit_and_fold_no_word(printed, args: tuple[str, ...]) -> None:
    text = printed(*args)
    assert too_wide(text) == []
    assert "…" not in text
    whole = {  # words that a narrow column would fold
        ("assets",): {"https://github.com/OPTML-Group/Diffusion-MU-Attack,"},
        ("list", "methods"): set(names("methods")),
        ("list", "tasks"): {"garbage-truck-calibration"},
    }
    assert whole.get(args, set()) <= set(text.split())


def test_the_scan_for_wide_lines_finds_one() -> None:
    assert too_wide(f"{'x' * 90}\n{'a b ' * 30}\nshort") == ["a b " * 30]


def test_json_of_listings(cli) -> None:
    listed = json.loads(cli("list", "methods", "--json").out)
    assert {item["name"] for item in listed} == set(names("methods"))
    esd = json.loads(cli("show", "methods", "esd", "--json", "--model", "sd14").out)
    steps = next(p for p in esd["parameters"] if p["name"] == "steps")
    assert steps["values"]["object"] == "1000 (paper)"
    assert json.loads(cli("show", "tasks", "church", "--json").out)["prompts"] > 0
    assert json.loads(cli("show", "models", "sd14", "--json").out)["world"] == "photo"
    assert {item["name"] for item in json.loads(cli("list", "models", "--json").out)} == set(MODELS)
    found = {item["name"]: item for item in json.loads(cli("assets", "--json").out)}
    assert found["sd14"]["size_mb"] == 4266
    assert found["clip-vit-b32"]["flag"] == "--asset clip-vit-b32=FOLDER"


def test_json_of_a_plan_a_run_and_a_report(cli) -> None:
    (cell,) = json.loads(cli("plan", *ONE[1:-1], "--json").out)["cells"]
    assert (cell["done"], cell["method"]["name"], cell["prompts"]) == (False, "none", 2)
    run = cli(*ONE, "--json")
    (table,) = json.loads(run.out)
    assert table["title"] == "Concept erasing rate"
    assert "0 of 1 cells" in run.err
    assert json.loads(cli("plan", *ONE[1:-1], "--json").out)["cells"][0]["done"] is True
    assert json.loads(cli("report", "--json").out) == [table]


def test_quiet_says_the_result_alone_and_errors_still(cli, monkeypatch) -> None:
    import methods

    loud, quiet = cli(*ONE, "--fresh"), cli(*ONE, "--fresh", "--quiet")
    assert "ok      church" in loud.err
    assert quiet.err == ""
    assert "cells were there" not in quiet.out
    assert "Concept erasing rate" in quiet.out
    monkeypatch.setitem(methods.PLUGINS, "broken", "methods.nowhere:X")
    broken = cli(*ONE, "--method", "broken", "-q")
    assert broken.code == 3
    assert broken.err == ""
    assert "failed: church, broken, attack none: PluginLoadError" in broken.out
    assert "ok      church" in cli(*ONE, "--fresh").err  # the next command speaks again


def test_verbose_says_where_a_plugin_failed(cli, monkeypatch) -> None:
    import methods

    assert hasattr(fakes, "Raises")
    monkeypatch.setitem(methods.PLUGINS, "raises", "fakes:Raises")
    command = (*ONE[:6], "raises", *ONE[7:])
    assert "in erase" not in cli(*command).err
    said = cli(*command, "--verbose").err
    assert "computing church" in said
    assert re.search(r'File ".*fakes.py", line \d+, in erase', said)


def test_verbose_goes_to_the_stderr_of_its_time(cli) -> None:
    first = io.StringIO()
    with contextlib.redirect_stderr(first):
        cli(*ONE, "--verbose")
    first.close()
    said = cli(*ONE, "--fresh", "--verbose").err
    assert "Logging error" not in said
    assert said.count("computing church") == 1


@pytest.mark.slow
def test_no_colour_where_none_is_wanted() -> None:
    command = [sys.executable, "-m", "bench", "list", "nothing"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "FORCE_COLOR": "1"}
    coloured = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "\x1b[31m" in coloured.stderr
    plain = subprocess.run(
        command, env=env | {"NO_COLOR": "1"}, capture_output=True, text=True, check=False
    )
    assert "\x1b[3" not in plain.stderr
    piped = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert "\x1b" not in piped.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bench", "run", "--method", "p-e"], ["p-esd"]),
        (
            ["bench", "run", "--task", "garbage-truck"],
            ["garbage-truck", "garbage-truck-calibration"],
        ),
        (["bench", "show", "attacks", "p4"], ["p4d", "p4d-official"]),
        (["bench", "show", "models", "sd15"], ["sd15"]),
        (["bench", "list", "fig"], ["figures"]),
        (["bench", "docto"], ["doctor"]),
    ],
)
def test_the_shell_completes_names(capsys, monkeypatch, words, expected) -> None:
    monkeypatch.setenv("_BENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setattr("sys.argv", ["bench"])
    with pytest.raises(SystemExit):
        module.main()
    assert capsys.readouterr().out.split() == expected


def test_did_you_mean(cli) -> None:
    for args, hint in (
        (("list", "method"), "'methods'"),
        (("show", "figures", "paretto"), "'pareto'"),
        (("show", "evaluators", "nudenett"), "'nudenet'"),
        ((*ONE, "--judge", "emoji-subjet"), "'emoji-subject'"),
        ((*ONE, "--method", "esd:stepss=3"), "'steps'"),
        (("report", "--format", "markdow"), "'markdown'"),
        (("assets", "--fetch", "clip-vit-b3"), "'clip-vit-b32'"),
        (("cache", "prune", "--part", "imags"), "'images'"),
        (("docter",), "'doctor'"),
    ):
        said = cli(*args)
        assert said.code == 2
        assert f"Did you mean {hint}?" in said.err, args
        assert "Value error" not in said.err


def test_version(printed) -> None:
    assert printed("--version").strip() == f"erasure-bench {version('erasure-bench')}"


def test_help_says_every_exit_code(printed) -> None:
    text = re.sub(r"\s+", " ", printed("--help"))
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in text


def test_an_attack_shows_its_prompts_beside_its_steps() -> None:
    """A stage that has not ended stays while another reports; one that has ended gives way."""
    shown = io.StringIO()

    def frame() -> list[tuple[str, str]]:
        shown.seek(0)
        shown.truncate()
        time.sleep(0.3)  # three refreshes
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
        return sorted(set(re.findall(r"([a-z]+) [^a-z/]*?(\d+/\d+)", text)))

    with bars(Console(file=shown, force_terminal=True, width=80, no_color=True)) as (begin, stage):
        stage("erase", 5, 5)
        stage("attack", 0, 2)
        stage("steps", 7, 40)
        assert frame() == [("attack", "0/2"), ("steps", "7/40")]
        stage("steps", 40, 40)
        stage("judge", 1, 2)
        assert frame() == [("attack", "0/2"), ("judge", "1/2")]
        begin("the next cell")
        assert frame() == []
