"""Several processes attack one cell: same prompts found, whatever dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch

from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.engine.workers import Workers
from bench.plan.plan import Job, plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.store.artifacts import Artifacts
from bench.store.record import Record


def cell_of(attack: str = "unlearndiff", **params: object) -> Job:
    ref = Ref(attack, params or {"iterations": 1, "tokens": 1})
    (cell,) = plan(Spec("tiny-random", (Ref("none"),), (ref,), ("church",), limit=3))
    return cell


def settings(tmp_path: Path, name: str, **more: object) -> Settings:
    return Settings(batch_size=4, artifacts=Artifacts(tmp_path / name), **more)


def rows(result: Record) -> list[tuple[object, ...]]:
    assert result.status == "ok", result.reason
    return [(row.id, row.adversarial, row.success, row.trace["ids"]) for row in result.rows]


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def crew():
    with Workers(2) as workers:
        yield workers


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path, crew: Workers) -> None:
    """An attack that searches for each prompt alone: another batch may round another way."""
    cell, seen = cell_of("mma", length=4, steps=2, batch=8, top_k=8), []
    alone = Runner(settings(tmp_path, "alone")).run(cell)
    heard = settings(tmp_path, "together", progress=lambda *said: seen.append(said))
    together = Runner(heard, crew).run(cell)
    assert rows(together) == rows(alone)
    assert crew.finished == 1
    counts = [done for stage, done, _ in seen if stage == "attack"]
    assert counts == sorted(counts)
    assert counts[-1] <= 3
    with crew.share(
        lambda part: {}, ["one"]
    ) as mine:  # nothing is left to give, and nobody to wait for
        assert mine == {"one"}
    crew.wait(lambda: pytest.fail("waits"))
    assert crew.finished == 0


@pytest.mark.slow
def test_killed_in_mid_attack(tmp_path: Path, crew: Workers, caplog) -> None:
    (other,) = crew._others
    os.kill(other.process.pid, signal.SIGSTOP)  # so that it finishes nothing

    def kill() -> None:
        until(lambda: list(tmp_path.glob("cache/attacks/*/church-001-*.json")))
        other.process.kill()

    Thread(target=kill, daemon=True).start()
    runner = Runner(settings(tmp_path, "cache"), crew)
    assert len(rows(runner.run(cell_of()))) == 3
    assert crew.finished == 0
    (line,) = [r.getMessage() for r in caplog.records]
    assert line == (
        f"a worker (process {other.process.pid}) ended with -9; this process does what it left undone"
    )
    with crew.share(
        lambda part: {"job": {"no": "job"}}, ["a", "b"]
    ) as mine:  # the next one cannot read this
        assert mine == {"a"}
        assert crew._others[0] is not other
    crew.wait(lambda: None)
    assert crew.finished == 0


@pytest.mark.slow
def test_an_error_stops_the_others(crew: Workers) -> None:
    (other,) = crew._others
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), crew.share(lambda part: {}, ["a", "b"]):
        raise ZeroDivisionError
    assert other.process.poll() is not None
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_a_worker_ends_with_its_parent(crew: Workers) -> None:
    (other,) = crew._others
    other.process.stdin.close()  # as a kernel does for a killed process
    assert other.process.wait(60) == 0


def test_what_is_found_once_is_not_shared(tmp_path: Path, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(Workers, "share", lambda self, job, pieces: asked.append(self.count))
    crew = Workers(1)
    crew.count = 7
    runner = Runner(settings(tmp_path, "cache"), crew)
    with pytest.raises(TypeError):  # the replaced method gives no block
        runner.run(cell_of("cce", steps=1))
    with pytest.raises(TypeError):
        runner.run(cell_of())
    assert asked == [1, 7]


@pytest.mark.slow
def test_no_code_of_the_current_folder_runs_in_a_worker(tmp_path: Path, monkeypatch) -> None:
    for name in ("filelock", "safetensors", "json", "bench"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    with Workers(2) as crew:
        (other,) = crew._others
        other.process.stdin.close()
        assert other.process.wait(60) == 0, other.said
    assert not (tmp_path / "ran").exists()


def test_a_worker_that_cannot_start_says_why(monkeypatch, caplog) -> None:
    monkeypatch.setattr(
        "bench.engine.workers.python", lambda _: [sys.executable, "-c", "import nothing"]
    )
    with Workers(2) as crew:
        with crew.share(lambda part: {}, ["a", "b"]) as mine:
            assert mine == {"a"}
        crew.wait(lambda: None)
    assert "ended with 1: ModuleNotFoundError: No module named 'nothing'" in caplog.text


def test_there_are_no_more_processes_than_prompts(cli, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(
        "bench.engine.workers.Workers._start", lambda self: asked.append(self.count)
    )
    run = (
        "run",
        "--model",
        "tiny-random",
        "--method",
        "none",
        "--task",
        "church",
        "--workers",
        "4",
    )
    for attack, limit, count in (
        ("none", "3", 1),
        ("seed-search", "1", 1),
        ("seed-search", "2", 2),
    ):
        more = ("--attack", f"{attack}:draws=1" if attack != "none" else attack, "--limit", limit)
        assert cli(*run, *more).code == 0
        assert set(asked) == {count}
        asked.clear()
        assert cli(*run, *more).code == 0  # it is all there: no process at all
        assert not asked
