"""What a command loads: planning and tables must not wait for torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "diffusers", "transformers", "pandas", "matplotlib")
RUN = """
import io, json, sys
from contextlib import redirect_stdout
from bench.cli import app
commands, names = json.loads(sys.argv[1])
asked = []

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in names:
            asked.append(name)
            raise ImportError(f"{name} is not for this command")

sys.meta_path.insert(0, Refuse())
found = {}
for command in commands:
    with redirect_stdout(io.StringIO()) as out:
        try:
            app(command, standalone_mode=False)
        except SystemExit as exc:
            assert not exc.code, command
    found[" ".join(command)] = [list(asked), out.getvalue()]
print(json.dumps(found))
"""


def loaded(commands: list[list[str]], names: tuple[str, ...]) -> dict[str, tuple[list[str], str]]:
    """Run commands one after the other in one new process; return what they asked for, and printed."""
    order = json.dumps([commands, names])
    done = subprocess.run(
        [sys.executable, "-c", RUN, order], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_help_lists_and_plans_load_nothing_heavy() -> None:
    kinds = ("methods", "attacks", "evaluators", "tasks", "models")
    commands = [["--help"], ["run", "--help"], *(["list", kind] for kind in kinds)]
    commands += [["show", "methods", "p-esd"], ["show", "attacks", "p4d-official"]]
    attacks = [x for name in ("unlearndiff", "p4d", "mma") for x in ("--attack", name)]
    plan = ["plan", "--method", "p-ac", *attacks, "--task", "church"]
    commands += [plan, [*plan, "--results", str(ROOT / "results" / "reference")]]
    for command, (heavy, printed) in loaded(commands, (*HEAVY, "scipy")).items():
        assert not heavy, f"bench {command} loads {heavy}"
        assert printed, command


def test_a_finished_matrix_loads_no_model_library(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "results" / "reference" / "emoji" / "church", tmp_path / "emoji" / "church"
    )
    asked = ["run", "--task", "church", "--limit", "50", "--results", str(tmp_path)]
    asked += [x for name in ("none", "esd", "p-esd") for x in ("--method", name)]
    asked += [x for name in ("none", "unlearndiff", "p4d") for x in ("--attack", name)]
    ((heavy, printed),) = loaded([asked], (*HEAVY, "scipy.stats")).values()
    assert "9 of 9 cells were there already" in printed
    assert not heavy


def test_threads_are_told_to_sleep_before_torch_is_loaded() -> None:
    code = "import bench, os, sys; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"

    def said(**env: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), **env},
        )  # fmt: skip
        return done.stdout.split()

    torch_loaded, count = said()
    assert torch_loaded == "False"
    assert int(count) <= 1000
    assert said(GOMP_SPINCOUNT="7") == ["False", "7"]  # the user's word counts
