"""The command line: what it prints, its exit codes, and every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest

from bench.cli import app
from bench.plugins.registry import names

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"
TINY = ("--model", "tiny-random", "--limit", "2")
ONE = ("run", *TINY, "--method", "none", "--attack", "none", "--task", "church")


def test_run_then_run_again(cli) -> None:
    first = cli(*ONE)
    assert first.code == 0
    assert "CER, no attack" in first.out
    assert "N=2" in first.out
    assert "0 of 1 cells were there already" in first.out
    (png,) = Path("results/local").rglob("*.png")
    assert png.read_bytes()[:4] == b"\x89PNG"
    again = cli(*ONE)
    assert again.code == 0
    assert "1 of 1 cells were there already" in again.out
    assert again.out.split("\n")[:-2] == first.out.split("\n")[:-2]
    assert again.err == ""


def test_a_picture_that_cannot_be_written_is_drawn_by_the_next_run(cli) -> None:
    cli(*ONE)
    (picture,) = Path("results/local").rglob("*.png")
    drawn = picture.read_bytes()
    picture.unlink()
    (record,) = Path("results/local").rglob("*.json")
    record.unlink()
    picture.mkdir()  # nothing can be written there
    said = cli(*ONE)
    assert said.code == 5
    assert f"cannot write {picture}: " in " ".join(said.err.split())
    assert record.exists()
    assert cli(*ONE).code == 5  # as before
    picture.rmdir()
    again = cli(*ONE)
    assert (again.code, picture.read_bytes()) == (0, drawn)
    assert "1 of 1 cells were there already" in again.out
    picture.unlink()
    assert cli(*ONE).err == ""  # a picture that somebody took away is not drawn again
    assert not picture.exists()


def test_no_images_keeps_none(cli, tmp_path: Path) -> None:
    assert cli(*ONE, "--no-images").code == 0
    assert not list(tmp_path.rglob("*.png"))


def test_plan_computes_nothing(cli, tmp_path: Path) -> None:
    said = cli("plan", *ONE[1:])
    assert said.code == 0
    assert "to do" in said.out
    assert not list(tmp_path.rglob("*.json"))
    cli(*ONE)
    assert "done" in cli("plan", *ONE[1:]).out


def test_plan_tells_variants_apart(cli) -> None:
    cells = cli(
        "plan", "--method", "esd", "--method", "esd:steps=5", "--attack", "unlearndiff",
        "--task", "garbage-truck",
    )  # fmt: skip
    assert "esd steps=5 " in cells.out


def test_report_of_a_task_shows_what_stands_beside_it(cli) -> None:
    both = ("run", *TINY, "--method", "none", "--attack", "none", "--no-images")
    assert cli(*both, "--task", "church", "--task", "retain").code == 0
    assert cli(*both, "--task", "tench").code == 0
    church = cli("report", "--task", "church").out
    assert "retain accuracy" in church
    assert "tench" not in church
    retain = cli("report", "--task", "retain").out
    assert "Retained and benign tasks" in retain
    assert "CER" not in retain


def test_report_formats(cli) -> None:
    cli(*ONE)
    markdown = cli("report", "--format", "markdown")
    assert markdown.out.startswith(
        "### Concept erasing rate\n\n| task | method | CER, no attack | s |"
    )
    header, row, *_ = cli("report", "--format", "csv").out.splitlines()
    assert header.startswith("task,method,column,value,low,high,n,unscored,attacked,")
    assert row.startswith('church,none,"CER, no attack",')
    assert "church" in cli("report", "--task", "church").out


@pytest.mark.parametrize("what", ["methods", "attacks", "evaluators", "tasks", "models"])
def test_list(cli, what: str) -> None:
    said = cli("list", what)
    assert said.code == 0
    expected = {"methods": "p-esd", "attacks": "unlearndiff", "evaluators": "emoji-body",
                "tasks": "garbage-truck", "models": "emoji-sd"}  # fmt: skip
    assert expected[what] in said.out


def test_list_says_what_each_plugin_does(cli) -> None:
    for what in ("methods", "attacks", "evaluators"):
        lines = [line.split(maxsplit=1) for line in cli("list", what).out.splitlines()]
        assert len({about for _, about in lines}) == len(lines) == len(names(what))


def test_show_merges_a_parameter_and_its_words(cli) -> None:
    said = cli("show", "attacks", "unlearndiff").out.splitlines()
    assert "Args:" not in said
    place = said.index("  weight_decay: number >= 0 = 0.1 (paper)")  # a parameter of a base class
    assert said[place + 1].startswith("    Weight decay: a term of Adam's gradient")


def test_show_has_no_summary_of_a_part(cli) -> None:
    """A class of parameters has a summary that says nothing of the plug-in; another plug-in's does."""
    said = cli("show", "methods", "p-esd").out
    assert "How masks are learned" not in said
    assert "ESD's objective needs" not in said
    assert "Slope of the sigmoid." in said
    assert "Erased Stable Diffusion (Gandikota" in cli("show", "methods", "np-esd").out
    said = " ".join(cli("show", "attacks", "mma").out.split())
    assert (
        "It tries each prompt as it is, and then once with the text that the search found" in said
    )
    assert "An attack that searches" not in said


def test_show(cli) -> None:
    said = cli("show", "methods", "p-esd")
    assert "gamma: number > 0 = 10.0 (paper)" in said.out
    assert "arxiv.org/abs/2405.16534" in said.out
    church = cli("show", "tasks", "church").out
    assert "church-050" in church
    assert "\nconcept: church (object, in its place 'house')\n" in church
    photo = cli("show", "models", "sd14").out
    assert "world photo" in photo
    assert "\ndraws with lms, 50 steps, 512 px\n" in photo


def test_a_paragraph_of_a_help_is_one_line_to_be_wrapped() -> None:
    from typer.main import get_command

    def paragraphs(command: Any) -> list[str]:
        parts = getattr(command, "commands", {}).values()
        own = [] if command.name == "bench" else (command.help or "").split("\n\n")
        return own + [line for part in parts for line in paragraphs(part)]

    said = paragraphs(get_command(app))
    assert len(said) > 60
    assert [text for text in said if "\n" in text] == []
    assert any(
        "device, and where they say nothing from figures that ship." in text for text in said
    )


RUN = ("run", "--method", "none", "--attack", "none", "--task", "church", "--model", "tiny-random")
BAD = {
    "method": (("run", "--method", "p-esdd", "--attack", "none", "--task", "church"), 2,
               "error: unknown method 'p-esdd'. Did you mean 'p-esd'? Known: "
               + ", ".join(sorted(names("methods")))),
    "attack": (("run", "--method", "esd", "--attack", "unlearndif", "--task", "church"), 2,
               "error: unknown attack 'unlearndif'. Did you mean 'unlearndiff'? Known: "
               + ", ".join(sorted(names("attacks")))),
    "model": ((*RUN[:-1], "emoji"), 2,
              "error: unknown model 'emoji'. Did you mean 'emoji-sd'? "
              "Known: emoji-sd, sd14, sd14-random, sd15, sd21, sd21-base, tiny-random; "
              "or a diffusers folder, a checkpoint file, a hub id (owner/name)"),
    "parameter": (("run", "--method", "esd:step=3", "--attack", "none", "--task", "church"), 2,
                  "error: esd has no parameter step. Did you mean 'steps'? It takes: batch, eta, lr, "
                  "params, reuse, sampling_steps, start_guidance, steps, templates, xt_alignment"),
    "type": (("run", "--method", "esd:lr=fast", "--attack", "none", "--task", "church"), 2,
             "error: esd: lr=fast: Input should be a valid number, "
             "unable to parse string as a number"),
    "form": (("run", "--method", "esd:lr", "--attack", "none", "--task", "church"), 2,
             "error: expected name:key=value,..., got 'esd:lr'"),
    "limit": ((*RUN, "--limit", "0"), 2, "error: --limit: expected at least 1, got 0"),
    "seed": ((*RUN, "--seed", "-1"), 2, "error: --seed: expected at least 0, got -1"),
    "batch": ((*RUN, "--batch-size", "0"), 2, "error: --batch-size: expected at least 1, got 0"),
    "dtype": ((*RUN, "--dtype", "fp8"), 2,
              "error: --dtype: expected one of fp32, bf16, fp16, got 'fp8'"),
    "empty": (("run", "--method", "none", "--attack", "none"), 2,
              "error: nothing to run: give --task; `bench list tasks` names them"),
    "retain alone": (("run", "--method", "esd", "--attack", "none", "--task", "retain"), 2,
                     "error: task 'retain' erases nothing itself: add --erase TASK, whose concept is to "
                     "be erased, or --task TASK to measure that, too"),
    "erased alone": ((*RUN, "--erase", "church"), 2,
                     "error: --erase: expected a retain or benign --task to measure on the erased models, "
                     "got only 'church'"),
    "erased retain": (("run", "--method", "esd", "--erase", "benign", "--task", "retain"), 2,
                      "error: --erase: expected a target task, got 'benign', a benign task"),
    "erased twice": (("run", "--method", "esd", "--erase", "church", "--erase", "church", "--task",
                      "retain"), 2, "error: --erase: expected each once, got 'church' twice"),
    "no report": (("report", "--results", "nowhere"), 2,
                  "error: there is no folder nowhere: run `bench run` first, or give --results"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(cli, case: str) -> None:
    args, code, line = BAD[case]
    said = cli(*args)
    assert (said.code, said.err, said.out) == (code, line + "\n", "")


def test_unknown_task_is_one_line(cli) -> None:
    said = cli("run", "--method", "none", "--attack", "none", "--task", "churhc")
    assert said.code == 2
    assert said.err.startswith("error: unknown emoji task 'churhc'. Did you mean 'church'? Known: ")
    assert said.err.count("\n") == 1


def test_device_that_is_not_there(cli) -> None:
    said = cli(*ONE, "--device", "cuda:9")
    assert said.code == 2
    assert said.err.startswith("error: --device cuda:9 cannot be used: ")
    assert said.err.endswith("; try --device cpu\n")


def test_results_that_cannot_be_written(cli) -> None:
    Path("file").write_text("")
    said = cli(*ONE, "--results", "file/results")
    assert said.code == 5
    assert said.err.startswith("error: cannot write file/results: ")
    assert said.err.endswith("Not a directory; choose another folder\n")


def test_damaged_record_is_named_and_kept(cli) -> None:
    cli(*ONE)
    cli(*ONE, "--seed", "1")
    path, _ = sorted(Path("results/local").rglob("*.json"))
    whole = path.read_text()
    for damage, reason in (
        (whole[:100], "EOF while parsing a string"),
        (json.dumps({"schema_version": 99, "cell": {}}), "of schema 1 or older, got 99; update"),
    ):
        path.write_text(damage)
        said = cli("report")
        assert said.code == 0
        assert "church" in said.out
        assert said.err.startswith(f"warning: passed over: {path}")
        assert reason in said.err
        assert said.err.count("\n") == 1
        assert "delete" not in said.err
    assert path.exists()


def test_missing_weights(cli, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.sources.catalog.check_shipped.__defaults__", (tmp_path,))
    said = cli(*ONE)
    assert said.code == 4
    expected = tmp_path / "digests.json"
    assert said.err == (
        f"error: emoji-sd's weights are missing: expected {expected}; reinstall the package\n"
    )


def test_failed_cell_is_shown_and_the_rest_runs(cli, monkeypatch) -> None:
    import methods

    monkeypatch.setitem(methods.PLUGINS, "fake", f"fakes:{fakes.Raises.__name__}")
    said = cli(*ONE, "--method", "fake")
    assert said.code == 3
    assert "failed  church, fake, attack none: " in said.err
    assert "method fake raised ZeroDivisionError: by design" in said.err
    assert "ok      church, none, attack none" in said.err
    assert "failed" in said.out
    assert "1 of 2 cells failed" in said.out
    more = cli(*ONE, "--method", "fake", "--attack", "random:draws=1,tokens=1")
    assert more.err.count("by design") == 1
    assert "failed  church, fake, attack random: as before" in more.err
    assert more.out.count("by design") == 1
    assert "failed: church, fake: " in more.out and "(2 cells)" in more.out
    assert "cells failed; -v shows where" in more.out


def test_failures_are_said_once_and_how_to_drop_them(cli, monkeypatch) -> None:
    import methods

    monkeypatch.setitem(methods.PLUGINS, "fake", f"fakes:{fakes.Raises.__name__}")
    one = ("run", *TINY, "--method", "fake", "--task", "church")
    told = cli(*one, "-q")
    assert (told.code, told.err) == (3, "")
    assert "Wilson" not in told.out
    assert told.out.count("by design") == 1
    beside = cli(*one, "-q", "--json")
    assert beside.err.count("by design") == 1
    loud = cli(*one, "-v")
    assert loud.out.rstrip().endswith("1 of 1 cells failed")

    cli(*ONE)
    line = cli("report").err
    assert line.startswith("1 failed cell: `bench run` tries again; to drop what failed, delete")
    listed = subprocess.run(
        line.partition("this lists: ")[2], shell=True, capture_output=True, text=True, check=True
    )
    (path,) = listed.stdout.split()
    assert json.loads(Path(path).read_text())["status"] == "failed"
    Path(path).unlink()
    assert cli("report").err == ""


def test_a_default_out_of_bounds_spoils_its_own_cell_only(cli, tmp_path: Path, monkeypatch) -> None:
    from bench.engine.scaffold import TEMPLATES

    (tmp_path / "oversized.py").write_text(
        (TEMPLATES / "method.py").read_text().replace("= 1.0", "= 9.0")
    )
    import methods

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(methods.PLUGINS, "oversized", "oversized:Fade")
    said = cli(*ONE, "--method", "oversized")
    assert said.code == 3
    assert "ok      church, none, attack none" in said.err
    assert (
        "strength=9.0: Input should be less than or equal to 4; that is the class's own" in said.err
    )
    assert cli(*ONE, "--method", "oversized:strength=9").code == 2


def test_shadowed_package(tmp_path: Path) -> None:
    (tmp_path / "attacks.py").write_text("")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "400"}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "list", "attacks"],
        env=env, capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.startswith(
        f"error: the package 'attacks' resolves to {tmp_path}/attacks.py, "
    )


def test_help_is_quick_and_every_command_has_an_example() -> None:
    def help_of(*args: str) -> tuple[str, float]:
        start = os.times()
        done = subprocess.run(
            [sys.executable, "-m", "bench", *args, "--help"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        end = os.times()  # seconds on the processor, whatever else the machine does
        spent = (
            end.children_user + end.children_system - start.children_user - start.children_system
        )
        return done.stdout, spent

    times = [help_of()[1] for _ in range(3)]
    assert min(times) < 0.5
    for command in ("run", "plan", "list", "show", "assets", "erase", "apply", "report", "figure"):
        assert f"Example: bench {command}" in help_of(command)[0]
    assert "Example: bench speed attack" in help_of("speed", "attack")[0]
    said = " ".join(help_of("show")[0].split())
    (cell,) = re.findall(r"bench show ([0-9a-f]{8}) --results results/reference", said)
    assert len(list(REFERENCE.rglob(f"*--{cell}*.json"))) == 1


def test_two_plugins_of_one_name(cli, monkeypatch) -> None:
    dist = SimpleNamespace(name="lab")
    points = [SimpleNamespace(name="x", value=f"m{i}:X", dist=dist) for i in (1, 2)]
    monkeypatch.setattr(
        "bench.core.announced.entry_points",
        lambda group: points if group == "bench.methods" else [],
    )
    said = cli("list", "methods")
    assert (said.code, said.err) == (
        3, "error: two methods are named 'lab/x': m1:X and m2:X; uninstall one\n"
    )  # fmt: skip


@pytest.mark.usefixtures("keyboard")
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_what_is_finished(cli, monkeypatch, by: signal.Signals) -> None:
    import attacks

    monkeypatch.setattr(fakes.DiesOnce, "by", by)
    monkeypatch.setitem(attacks.PLUGINS, "dies", f"fakes:{fakes.DiesOnce.__name__}")
    command = (*RUN, "--attack", "dies", "--limit", "4")
    said = cli(*command)
    assert said.code == 128 + by
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert "stopped; what is finished is kept. The same command resumes." in said.err
    assert "ok      church, none, attack none" in said.err
    again = cli(*command)
    assert again.code == 0
    assert "1 of 2 cells were there already" in again.out
    assert len(fakes.CALLS.read_text().split()) == 4


def test_a_broken_plugin_is_listed_with_its_cause(cli, monkeypatch) -> None:
    import methods

    monkeypatch.setitem(methods.PLUGINS, "broken", "methods.nowhere:X")
    monkeypatch.setitem(methods.PLUGINS, "leaves", "leaves:X")
    monkeypatch.setitem(methods.PLUGINS, "no-card", "fakes:NoCard")
    monkeypatch.setitem(methods.PLUGINS, "odd", "fakes:OddCard")
    Path("leaves.py").write_text("import sys\nsys.exit('by design')\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    said = cli("list", "methods")
    assert (said.code, said.err) == (0, "")
    lines = {line.split()[0]: line for line in said.out.splitlines()}
    assert "No module named 'methods.nowhere'" in lines["broken"]
    assert "SystemExit: by design" in lines["leaves"]
    assert "expected a class variable card" in lines["no-card"]
    assert lines["odd"].endswith("Says \\x1b]0;title\\x07 [red]:x:")
    assert "fine-tune the denoiser" in lines["esd"]
    for name, code, words in (
        ("broken", 3, "No module named 'methods.nowhere'"),
        ("leaves", 3, "SystemExit: by design"),
        ("no-card", 3, "expected a class variable card"),
        ("odd", 0, ""),
    ):
        shown = cli("show", "methods", name)
        assert (shown.code, shown.err.count("\n")) == (code, int(code > 0))
        assert words in shown.err
    odd = cli("show", "methods", "odd").out
    assert "size: whole number = 3 (default)" in odd
    assert "\x1b" not in odd


def test_show_says_which_values_will_be_used_and_where_they_are_from(cli) -> None:
    from bench import Concept
    from bench.plugins.registry import Ref, resolved
    from bench.sources.catalog import MODELS

    for model in ("emoji-sd", "tiny-random", "sd14"):
        out = cli("show", "methods", "esd", "--model", model).out
        out = out[out.index("values with") :]
        info = MODELS[model]
        for kind in ("nsfw", "style", "object"):
            concept = Concept("x", kind)
            full = resolved("methods", Ref("esd"), concept, info.world, info.defaults)
            for name, value in full.params.items():
                about = out[out.index(f"  {name}: ") :].split("\n  ")
                same = about[0]
                own = next((line for line in about[1:4] if line.strip().startswith(kind)), same)
                assert f"{value} (" in (same if " = " in same else own), (model, kind, name)
    photo = cli("show", "methods", "esd", "--model", "sd14").out
    assert "lr: number > 0 = 1e-05 (paper)" in photo
    assert "steps: whole number >= 1 = 20 (model tiny-random)" in cli(
        "show", "methods", "esd", "--model", "tiny-random"
    ).out.replace("\n      ", " ")


USAGE = {
    "option": (("run", "--nonsense"), "No such option: --nonsense"),
    "choice": (("list", "foo"), "'foo' is not one of 'methods',"),
    "number": (("run", "--limit", "many"), "Invalid value for '--limit': "),
    "command": (("rnu",), "No such command 'rnu'"),
    "hostile": (("show", "methods", "esd", "\x1b[2J\n[bold]:x:"), "[bold]:x:)"),
}


@pytest.mark.parametrize("case", USAGE)
def test_a_wrong_command_line_is_one_line(cli, case: str) -> None:
    args, words = USAGE[case]
    said = cli(*args)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("error: ")
    assert words in said.err
    assert said.err.endswith("--help`\n")


def test_paths_that_cannot_be_are_one_line(cli) -> None:
    cli(*ONE)
    Path("file").write_text("")
    for path, code in (("x" * 300, 5), ("file", 2), ("nowhere", 2), ("bad\x00name", 2)):
        said = cli("report", "--results", path)
        assert (said.code, said.out, said.err.count("\n")) == (code, "", 1), said.err
        assert "\x00" not in said.err
    said = cli(*ONE, "--results", "x" * 300)
    assert (said.code, said.err.count("\n")) == (5, 1)


def test_interrupted_anywhere_is_one_line(cli, monkeypatch) -> None:
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bench.report.describe.listing", stopped)
    said = cli("list", "methods")
    assert (said.code, said.out) == (130, "")
    assert said.err.startswith("stopped")
    assert said.err.count("\n") == 1


def test_a_reader_that_leaves_is_no_error() -> None:
    script = f"{sys.executable} -m bench show tasks church | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.startswith("church: target")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bench", "list", "models"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr == "error: No space left on device; choose another path\n"


def test_letters_that_the_terminal_lacks_are_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "report", "--results",
         str(Path(__file__).parent.parent / "results" / "reference")],
        capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert re.search(rb"0\.\d\d \[\.\d\d-\.\d\d\]\*", done.stdout)


def test_help_says_the_exit_codes(cli) -> None:
    from bench import errors

    said = " ".join(cli("--help").out.split())
    assert "Exit codes:" in said
    for code in {e.exit_code for e in vars(errors).values() if hasattr(e, "exit_code")} | {
        130,
        143,
    }:
        assert f" {code} " in said


def test_hostile_names_reach_no_terminal(cli, monkeypatch) -> None:
    import methods
    from bench.errors import PluginError

    monkeypatch.setitem(methods.PLUGINS, "x\x1b[2J[red]", f"fakes:{fakes.Raises.__name__}")
    said = cli(*ONE, "--method", "x\x1b[2J[red]")
    assert said.code == PluginError.exit_code
    assert "\x1b" not in said.out + said.err
    assert r"x\x1b[2J[red]" in said.out
    assert r"x\x1b[2J[red]" in said.err
    for form in ("markdown", "csv"):
        assert "\x1b" not in cli("report", "--format", form).out
