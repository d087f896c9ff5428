"""``bench new``: what it writes is checked at once; nothing is overwritten."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

import bench
from bench.core.paths import ROOT
from bench.engine.scaffold import write_new
from bench.errors import SpecError

KINDS = ("method", "attack", "evaluator")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the tables of the real one."""
    for kind in KINDS:
        table = tmp_path / f"{kind}s" / "__init__.py"
        table.parent.mkdir()
        table.write_text((ROOT / f"{kind}s" / "__init__.py").read_text())
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_plugin_in_a_checkout(kind: str, checkout: Path, cli) -> None:
    table = checkout / f"{kind}s" / "__init__.py"
    before = table.read_text()
    said = cli("new", kind, "my-own", "--out", str(checkout))
    assert said.code == 0, said.err
    path = checkout / f"{kind}s" / "my_own.py"
    assert f"{path}: new" in said.out
    assert "bench check my-own" in said.out
    line = f'    "my-own": "{kind}s.my_own:MyOwn",\n'
    assert table.read_text().replace(line, "") == before
    (cls,) = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
    assert cls.name == "MyOwn"
    assert 'Card("My own"' in path.read_text()
    assert "fade" not in path.read_text().lower()
    again = cli("new", kind, "my-own", "--out", str(checkout))
    assert (again.code, again.out) == (2, "")
    assert f"has {'a' if kind == 'method' else 'an'} {kind} 'my-own' already" in again.err


def test_all_kinds_in_a_distribution(tmp_path: Path) -> None:
    lab = tmp_path / "my-lab"
    for kind, name in (("method", "dim"), ("attack", "again"), ("evaluator", "void"), ("task", "pizza"),
                       ("method", "dim-more")):  # fmt: skip
        done = write_new(kind, name, lab, distribution=True)
        assert done.check == f"my-lab/{name}"
    said = tomllib.loads((lab / "pyproject.toml").read_text())
    assert said["project"]["entry-points"] == {
        "bench.methods": {"dim": "my_lab.dim:Dim", "dim-more": "my_lab.dim_more:DimMore"},
        "bench.attacks": {"again": "my_lab.again:Again"},
        "bench.evaluators": {"void": "my_lab.void:Void"},
        "bench.tasks": {"pizza": "my_lab:PIZZA"},
    }
    names: dict[str, object] = {"__file__": str(lab / "my_lab" / "__init__.py")}
    exec((lab / "my_lab" / "__init__.py").read_text(), names)
    assert [f.state for f in bench.check(str(names["PIZZA"]))] == ["ok"] * 3
    before = {path: path.read_text() for path in lab.rglob("*.*")}
    for kind in ("method", "attack"):  # the second would be in the first one's file
        with pytest.raises(SpecError, match="already: choose another name"):
            write_new(kind, "dim", lab, distribution=True)
    assert {path: path.read_text() for path in lab.rglob("*.*")} == before


def test_a_task_on_its_own(tmp_path: Path, cli) -> None:
    said = cli("new", "task", "gas-pump")
    assert said.code == 0, said.err
    assert cli("check", "gas-pump.toml").code == 0
    run = ("--model", "tiny-random", "--method", "none", "--task", "gas-pump.toml")
    planned = cli("plan", *run)
    assert planned.code == 0, planned.err
    assert "gas pump" in planned.out
    assert "gas-pump.toml is there already" in cli("new", "task", "gas-pump").err
    write_new("task", "apple")
    assert 'anchor = "house"' in Path("apple.toml").read_text()
    assert "an apple in the snow" in Path("apple.csv").read_text()


def test_a_task_in_a_checkout_has_its_place(checkout: Path, cli) -> None:
    said = cli("new", "task", "pizza")
    assert {path.name for path in (checkout / "tasks").iterdir()} == {"pizza.toml", "pizza.csv"}
    assert not list(checkout.glob("pizza*"))
    assert (
        "bench run --method esd --attack none --attack random --task tasks/pizza.toml" in said.out
    )


def test_a_new_distribution_says_what_it_is(tmp_path: Path) -> None:
    write_new("method", "dim", tmp_path / "lab", distribution=True)
    project = tomllib.loads((tmp_path / "lab" / "pyproject.toml").read_text())["project"]
    assert project["description"] and project["license"] == "Apache-2.0"
    assert "bench check lab" in (tmp_path / "lab" / project["readme"]).read_text()
    assert "__pycache__/" in (tmp_path / "lab" / ".gitignore").read_text()
    (tmp_path / "lab" / "README.md").unlink()
    write_new("method", "more", tmp_path / "lab", distribution=True)  # what is there is the user's
    assert not (tmp_path / "lab" / "README.md").exists()


def test_a_distribution_is_checked_as_a_whole(tmp_path: Path, cli, monkeypatch) -> None:
    """And its names are known without their distribution."""
    for kind, name in (("attack", "again"), ("evaluator", "void"), ("task", "rose")):
        write_new(kind, name, tmp_path / "mylab", distribution=True)
    info = tmp_path / "mylab" / "mylab-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: mylab\nVersion: 0.1\n")
    points = tomllib.loads((tmp_path / "mylab" / "pyproject.toml").read_text())["project"][
        "entry-points"
    ]
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in of.items())
        for group, of in points.items()
    ]
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path / "mylab"))
    said = cli("check", "mylab")
    assert said.code == 0, said.out
    of = [
        line for line in said.out.splitlines() if line.startswith(("attack", "evaluator", "task"))
    ]
    assert of == ["attack mylab/again", "evaluator mylab/void", "task mylab/rose"]
    assert "Did you mean 'mylab/rose'?" in cli("show", "tasks", "rose").err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("method", "Mine"), "expected small letters, digits and single hyphens, such as my-method, got"),
        (("method", "../mine"), "expected small letters"),
        (("method", "a--b"), "expected small letters"),
        (("method", "x" * 41), "expected small letters"),
        (("method", "class"), "'class' is a word of Python"),
        (("method", "mine"), "expected a checkout of the project, with methods/__init__.py; there is none"),
        (("method", "mine", "--distribution", "--out", "json"), "'json' would hide another one"),
        (("method", "mine", "--distribution", "--out", "methods"), "'methods' would hide another one"),
        (("method", "mine", "--distribution", "--out", "My Lab"), "a distribution's name: expected small"),
        (("task", "parachut"), "no label is 'parachut'; known: parachute"),
        (("task", "church"), "the task 'church' is shipped"),
        (("thing", "mine"), "'thing' is not one of 'method'"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_one_line(cli, tmp_path: Path, args, message: str) -> None:
    said = cli("new", *args)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_project_file_that_is_broken_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    project = tmp_path / "lab" / "pyproject.toml"
    project.write_text("x = = 1")
    with pytest.raises(SpecError, match="expected a TOML file"):
        write_new("method", "mine", tmp_path / "lab", distribution=True)
    project.write_text(
        '[project]\nname = "lab"\nentry-points = { "bench.methods" = { a = "b:C" } }\n'
    )
    with pytest.raises(SpecError):
        write_new("method", "mine", tmp_path / "lab", distribution=True)
    assert [p.name for p in (tmp_path / "lab").iterdir()] == ["pyproject.toml"]
