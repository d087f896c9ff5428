"""What cells will cost, a run that ends in time, and a plan as a job for a cluster."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from bench.core.types import Concept
from bench.plan.asked import options
from bench.plan.cell import Cell
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.report.costs import TYPICAL, Forecast, forecast, measured, spoken
from bench.report.plans import bill, summary_tables
from bench.store.metrics import rate
from bench.store.record import Record
from bench.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
TINY = ("--model", "tiny-random", "--limit", "2")


def cell(method="esd", attack="none", task="church", *, n=10, seed=0, kind="object") -> Cell:
    return Cell(
        "emoji", "mine", "r", "fp32", Ref(method), Concept(task, kind), task, task, n, Ref(attack), seed
    )  # fmt: skip


def record(of: Cell, *, erase=100.0, attack=0.0, draw=20.0, device="cpu") -> Record:
    return Record(
        of,
        "ok",
        {"asr": rate([True])},
        erasure={"seconds": erase},
        seconds={"erase": erase, "attack": attack, "generate": draw, "judge": 0.0},
        environment={"device": device},
    )


def learnt(*records: Record, device: str = "cpu") -> Forecast:
    return forecast(device, records, lambda key: False)


def test_a_cell_of_another_seed_costs_the_same_for_each_prompt() -> None:
    known = learnt(record(cell()), record(cell(attack="p4d"), attack=50.0, draw=20.0))
    found = known.of(cell(attack="p4d", seed=1, n=5))
    assert found.stages == {
        "erase": 100.0,
        "attack": 25.0,
        "draw": 20.0,
    }  # 5 own, 5 attacked images
    assert (found.seconds, found.like) == (145.0, "same")


def test_what_is_there_already_is_not_paid_again() -> None:
    known = learnt(record(cell()))
    assert known.of(cell()).stages == {}  # erased and drawn
    new = [cell(seed=1), cell(seed=1, task="retain"), cell(attack="none", seed=1)]
    new = [replace(c, concept=new[0].concept) for c in new]
    assert [known.count(c).stages for c in new] == [
        {"erase": 100.0, "draw": 20.0},
        {"draw": 20.0},
        {},
    ]
    kept = forecast("cpu", [record(cell())], lambda key: True)
    assert kept.of(cell(seed=1)).stages == {"draw": 20.0}


def test_a_base_model_is_never_erased_and_its_images_serve_all_concepts() -> None:
    known = learnt(record(cell("none")))
    retain = [cell("none", task="retain", seed=0, kind=k) for k in ("object", "style")]
    retain[1] = replace(retain[1], concept=Concept("monet", "style"))
    assert [known.count(c).stages for c in retain] == [{"draw": 20.0}, {}]


def test_the_nearest_finished_cells_count_and_are_named() -> None:
    one = [
        record(cell("esd", "p4d", "church"), attack=100.0),
        record(cell("uce", "p4d", "tench"), attack=40.0),
    ]
    for known, method, task, kind, each, like in (
        (one[:1], "esd", "church", "object", 10.0, "same"),
        (one, "esd", "tench", "object", 10.0, "method"),
        (one, "ac", "tench", "object", 4.0, "task"),
        (one, "ac", "parachute", "object", 7.0, "kind"),
        (one, "esd", "nudity", "nsfw", 7.0, "attack"),
        ([], "esd", "church", "object", None, "?"),
    ):  # fmt: skip
        assert learnt(*known).rate("attack", cell(method, "p4d", task, kind=kind)) == (each, like)
    # Attacks on a base model are over at once, and tell nothing of those on an erased one.
    base = learnt(record(cell("none", "p4d"), attack=1.0))
    assert base.rate("attack", cell("esd", "p4d")) == (None, "?")


def test_another_kind_of_device_tells_nothing() -> None:
    known = (record(cell(), device="NVIDIA H200"),)
    assert learnt(*known).rate("draw", cell()) == (None, "?")
    assert learnt(*known, device="cuda:1").rate("draw", cell()) == (2.0, "same")


def test_images_that_were_there_and_failed_cells_tell_nothing() -> None:
    there = record(cell(), draw=0.008)
    failed = replace(record(cell()), status="failed")
    for known in (there, failed):
        assert learnt(known).rate("draw", cell()) == (None, "?")


def test_the_sum_of_a_plan_in_a_line() -> None:
    done, new, other = cell(), cell(seed=1), cell("uce")
    known = learnt(record(done))
    assert str(bill([(done, True)], known)) == "1 of 1 cells done"
    said = str(bill([(done, True), (new, False)], known))
    assert said == "1 of 2 cells done; the rest: about 2 min"
    known = learnt(record(done, device="GPU"), device="cuda")
    said = str(bill([(new, False), (other, False)], known))
    assert said == "0 of 2 cells done; the rest: about 2 min, 0.033 GPU-hours, and 1 cells unknown"
    many = [(cell(seed=n), False) for n in range(9999)]
    assert len(str(bill(many, known))) <= 80
    assert "nothing is known yet" in str(bill([(other, False)], learnt()))
    assert [spoken(s) for s in (0.2, 99, 100, 5999, 6000)] == [
        "0 s",
        "99 s",
        "2 min",
        "100 min",
        "1.7 h",
    ]


def committed() -> list[Record]:
    found = Store(ROOT / "results" / "reference")
    return list({r.cell.id: r for r in found}.values())


def test_committed_cells_are_predicted_from_the_others() -> None:
    """Leave out one erased model at a time; compare the sums over all, and cell by cell."""
    records = committed()
    models: dict[str, list[Record]] = defaultdict(list)
    for r in records:
        models[r.cell.erase_key].append(r)
    real, said = 0.0, 0.0
    ratios = []
    for key, mine in models.items():
        known = learnt(*(r for r in records if r.cell.erase_key != key))
        known._known = defaultdict(
            list, {k: v for k, v in known._known.items() if k[0] != "typical"}
        )
        for n, r in enumerate(mine):
            for stage, _, each in measured(r, {key} if n else ()):
                amount = 1 if stage == "erase" else r.cell.prompts
                guess, _ = known.rate(stage, r.cell)
                if guess is None:  # nobody knows what erasing costs by a method that ran once
                    others = [
                        k for k in models if models[k][0].cell.method.name == r.cell.method.name
                    ]
                    assert (stage, others) == ("erase", [key])
                    continue
                real, said = real + amount * each, said + amount * guess
                ratios.append(guess / each)
    assert 0.7 < said / real < 1.3
    near = sum(0.5 < ratio < 2 for ratio in ratios)
    assert near / len(ratios) > 0.75  # these ran beside other work, now less, now more of it


def test_whole_committed_cells_are_predicted_from_other_models() -> None:
    """As a plan does it: with what the cells before leave behind. The sum is as records say within 30 %."""
    records = committed()
    real, said = 0.0, 0.0
    for key in {r.cell.erase_key for r in records}:
        known = Forecast("cpu")
        for r in records:
            if r.cell.erase_key != key:
                known.learn(r)
        mine = [r for r in records if r.cell.erase_key == key]
        for r in sorted(mine, key=lambda r: r.cell.attacked):
            real += sum(r.seconds.values())
            said += known.count(r.cell).seconds or 0.0
    assert 0.7 < said / real < 1.3


def test_what_all_seeds_find_is_counted_once() -> None:
    known = learnt(
        record(cell(attack="unlearndiff"), attack=30.0), record(cell(attack="random"), attack=7.0)
    )
    for name, each in (("unlearndiff", None), ("random", 7.0)):
        first = replace(cell(attack=name), prompts=9)  # another N is not there yet
        assert (
            known.count(first).stages["attack"]
            == 9 / 10 * {"unlearndiff": 30.0, "random": 7.0}[name]
        )
        again = known.of(replace(first, seed=1, erase_seed=0)).stages.get("attack")
        assert again == (each and 9 / 10 * each)


def test_a_floor_costs_its_images_and_texts_of_others_none() -> None:
    known = learnt(record(cell()), record(cell("none")))  # 2 s an image
    floor = replace(cell(attack="random"), attack=Ref("random", {"draws": 7}))
    assert known.of(floor).stages == {"attack": 7 * 2.0 * 10, "draw": 20.0}
    assert known.of(floor).like == "images"
    base = replace(floor, method=Ref("none"))
    assert known.of(base).stages["attack"] == 20.0  # the first image shows the concept
    # Once it was run, that counts: with as many draws only.
    ran = [record(cell()), record(floor, attack=30.0)]
    assert learnt(*ran).of(replace(floor, seed=1)).stages["attack"] == 30.0
    fewer = replace(floor, attack=Ref("random", {"draws": 1}))
    assert learnt(*ran).of(fewer).like == "images"
    assert known.of(cell(attack="transfer")).stages == {"draw": 20.0}


def test_figures_that_ship_are_those_of_a_method_that_is_here() -> None:
    known = Forecast("cpu")
    known.learn_typical()
    spec = Spec("emoji-sd", (Ref("p-esd"),), (Ref("none"), Ref("p4d")), ("church",))
    found = [known.count(job.cell) for job in plan(spec)]
    assert [each.like for each in found] == ["same", "same"]
    assert found[1].seconds and found[1].seconds > 10
    assert len(TYPICAL.read_text().splitlines()) > 100


def test_a_summary_sums_over_each_axis() -> None:
    cells = [
        cell(m, a, t) for m in ("esd", "uce") for a in ("none", "p4d") for t in ("church", "tench")
    ]
    known = learnt(record(cells[0]), record(cells[2], attack=50.0), device="cuda")
    found = bill([(c, n == 0) for n, c in enumerate(cells)], learnt(record(cells[0]), device="cpu"))
    tables = summary_tables(found)
    assert [t.names for t in tables] == [("task",), ("method",), ("attack",)]
    assert tables[0].columns == ("cells", "done", "to do", "s", "unknown")
    for axis, value in (("task", "church"), ("method", "uce"), ("attack", "p4d")):
        (line,) = (line for t in tables for line in t.lines if line.names == (value,))
        mine = [
            (c, e)
            for c, e in found.cells
            if value in (c.task, getattr(c, axis).name if axis != "task" else "")
        ]
        left = [e for _, e in mine if e]
        assert [f.value for f in line.figures if f] == [
            len(mine), len(mine) - len(left), len(left), sum(e.seconds or 0 for e in left),
            sum(e.seconds is None for e in left),
        ]  # fmt: skip
    gpu = summary_tables(bill([(c, False) for c in cells], known))
    assert gpu[0].columns == ("cells", "done", "to do", "s", "GPU-hours", "unknown")


# ---------------------------------------------------------------------------- the command line
def test_a_large_plan_is_summed_up_on_a_screen_or_two(cli, monkeypatch) -> None:
    from bench import cli as module

    monkeypatch.setattr(module.out, "_width", 80)
    said = cli("plan", "--suite", "emoji").out.splitlines()
    assert len(said) < 80
    assert {"Cells by task", "Cells by method", "Cells by attack"} <= set(said)
    assert said[-1] == "--cells lists them one by one"
    args = ("plan", *TINY, "--method", "none", "--attack", "none", "--task", "church")
    assert "Cells by task" in cli(*args, "--summary").out
    assert cli(*args).out == cli(*args, "--cells").out
    assert "Cells by task" not in cli(*args).out


def test_a_plan_says_what_it_costs_in_eighty_columns(cli, monkeypatch) -> None:
    from bench import cli as module

    args = ("plan", "--method", "p-esd", "--method", "none", "--attack", "none", "--attack", "p4d",
            "--task", "church", "--task", "retain", "--limit", "12")  # fmt: skip
    monkeypatch.setattr(module.out, "_width", 80)
    said = cli(*args)
    assert "same" in said.out
    assert re.search(r"^0 of 6 cells done; the rest: about \d+ (s|min)$", said.out, re.M)


def test_max_hours_begins_no_cell_that_does_not_fit(cli, few_steps) -> None:
    run = ("run", *TINY, "--attack", "none", "--task", "church", "--no-images")
    assert cli(*run, "--method", "esd:steps=2").code == 0
    (path,) = Path("results/local").rglob("*.json")
    path.write_text(
        re.sub(
            r'"seconds": [\d.]+,\n  "sampler', '"seconds": 7200.0,\n  "sampler', path.read_text()
        )
    )
    both = (*run, "--method", "uce", "--method", "esd:steps=2", "--seed", "1")
    said = cli(*both, "--max-hours", "1")
    assert said.code == 6
    assert "the next cell needs about 2.0 h, 60 min are left of --max-hours 1" in said.err
    assert "1 of 2 cells are done. The same command goes on." in said.err
    assert "uce" in said.out
    again = cli(*both, "--max-hours", "3")
    assert again.code == 0
    assert "1 of 2 cells were there already" in again.out
    for hours in ("0", "-1", "nan", "inf"):
        said = cli(*both, "--max-hours", hours)
        assert (said.code, len(said.err.splitlines())) == (2, 1)
        assert "--max-hours: expected a number of hours above 0" in said.err


def test_a_request_is_said_in_options_and_read_again() -> None:
    spec = Spec(
        "tiny-random", (Ref("esd", {"steps": "2"}),), (Ref("none"), Ref("random", {"draws": "1"})),
        ("church",), 3, 2, "bf16", {"nudenet-640m": Path("a b.onnx")}, "emoji",
        Path("it's mine.csv"), "emoji-label", 7.5, floors=True, erase_seed=1,
    )  # fmt: skip
    import typer

    from bench.cli.options import request

    asked = []
    app = typer.Typer()
    app.command()(request(asked.extend))
    app(options(spec), standalone_mode=False)
    assert asked == [spec]


def exported(cli, *more: str) -> tuple[str, list[str]]:
    said = cli("plan", *TINY, "--method", "none", "--method", "uce", "--attack", "none",
               "--attack", "random:draws=1,tokens=1", "--task", "church", "--task", "retain",
               "--task", "van-gogh", *more, "--export", "sbatch", "job.sh")  # fmt: skip
    assert said.code == 0, said.err
    assert said.out.rstrip().endswith("sbatch job.sh")
    script = Path("job.sh").read_text()
    return script, script.split("<<'COMMANDS'\n")[1].split("\nCOMMANDS")[0].splitlines()


def test_a_job_has_a_command_for_each_erased_model(cli) -> None:
    script, commands = exported(cli, "--device", "cuda", "--results", "it's here")
    assert len(commands) == 4
    assert "#SBATCH --array=1-4\n" in script
    assert "#SBATCH --gres=gpu:1\n" in script
    assert subprocess.run(["bash", "-n", "job.sh"], check=False).returncode == 0
    for line in commands:
        words = shlex.split(line)
        assert words[:2] == ["bench", "run"]
        assert words[words.index("--results") + 1] == "it's here"
        assert words.count("--task") == 2


def test_an_export_of_what_cannot_be_said_is_one_line(cli, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a pizza\n")
    said = cli("plan", "--method", "none", "--attack", "none", "--concept", "pizza", "--kind",
               "object", "--prompts", "p.txt", "--judge", "emoji-subject", "--export", "sbatch",
               "job.sh")  # fmt: skip
    assert (said.code, len(said.err.splitlines())) == (2, 1)
    assert "expected tasks by name or file" in said.err
    assert cli("plan", *TINY, "--suite", "emoji", "--export", "csv", "x").code == 2


@pytest.mark.slow
def test_the_commands_of_a_job_compute_the_matrix_and_may_be_given_again(cli, monkeypatch) -> None:
    _, commands = exported(cli)
    body = '#!/bin/bash\nexec "$BENCH_PYTHON" -m bench "$@"\n'
    Path("bin").mkdir()
    Path("bin/bench").write_text(body)
    Path("bin/bench").chmod(0o755)
    import os
    import sys

    env = {
        **os.environ,
        "PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}",
        "BENCH_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
    }
    for _ in range(2):
        for n in range(1, len(commands) + 1):
            done = subprocess.run(
                ["bash", "job.sh"], env={**env, "SLURM_ARRAY_TASK_ID": str(n)},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    assert "3 of 3 cells were there already" in done.stdout
    assert len(list(Store(Path("results/local")))) == 12
    said = cli("plan", *TINY, "--method", "none", "--method", "uce", "--attack", "none",
               "--attack", "random:draws=1,tokens=1", "--task", "church", "--task", "retain",
               "--task", "van-gogh", "--export", "sbatch", "job.sh")  # fmt: skip
    assert "every cell is done" in said.err
