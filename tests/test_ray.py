"""Workers of a real Ray: the same records as one process, whatever dies. One Ray for all tests here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

from bench.engine import api, cluster, crew
from bench.engine.actor import Place
from bench.engine.schedule import chains
from bench.engine.settings import Settings
from bench.errors import SpecError, StoreError
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.store.artifacts import Artifacts
from bench.store.record import Record
from bench.store.store import Store

QUIET = Console(quiet=True)
ONE = cluster.Seats("cpu", 1, 0.0, 1)


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Ray, started in a folder with modules that must not run."""
    pytest.importorskip("ray")
    before, folder = Path.cwd(), tmp_path_factory.mktemp("current")
    for name in ("json", "filelock", "safetensors", "bench", "methods"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    os.chdir(folder)
    try:
        with cluster.connected("", 2, "cpu") as started:
            yield started
    finally:
        os.chdir(before)
    assert not (folder / "ran").exists()


def spec(*methods: Ref, attack: Ref | None = None, limit: int = 1) -> Spec:
    attacks = (attack or Ref("seed-search", {"draws": 1}),)
    return Spec(
        "tiny-random", methods or (Ref("none"),), attacks, ("church", "nudity"), limit=limit
    )


def told(folder: Path) -> dict[str, Any]:
    """Records as they are on disk, without time and environment."""
    found = {}
    for path in folder.rglob("*.json"):
        record = json.loads(path.read_text())
        del record["seconds"], record["environment"]
        record["erasure"].pop("seconds", None)
        for row in record["rows"]:
            del row["cost"]["seconds"]
        found[str(path.relative_to(folder))] = record
    return found


@pytest.mark.slow
def test_two_workers_write_what_one_process_writes(tmp_path, monkeypatch, ray, caplog) -> None:
    asked = spec(Ref("none"), Ref("esd", {"steps": 1}))
    together = api.run(asked, results=Path("together"), workers=2, device="cpu")
    assert len(together) == 4
    assert {r.environment["threads"] for r in together} == {"1"}
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "another"))
    api.run(asked, results=Path("alone"), device="cpu")
    assert told(Path("together")) == told(Path("alone"))
    assert len(list(Path("together").rglob("*.png"))) == 4
    again = api.run(asked, results=Path("together"), workers=2, device="cpu")
    assert again.known == 4
    assert not caplog.records


@pytest.mark.slow
def test_workers_share_the_prompts_of_an_attack(tmp_path, monkeypatch, ray) -> None:
    """One cell is split: the second worker takes parts of it."""
    helped = []
    ask, give = crew.Crew._shared, crew.Crew.give

    def patient(self: crew.Crew, *args: Any) -> bool:
        """Wait until both workers are there."""
        here = self.working or all(m.answer is None for m in self._members.values())
        return give(self, *args) if here else True

    def noted(self: crew.Crew, schedule: Any, helper: Any) -> Iterator[Any]:
        for job in ask(self, schedule, helper):
            helped.append(job.cell.attack.name)
            yield job

    monkeypatch.setattr(crew.Crew, "_shared", noted)
    monkeypatch.setattr(crew.Crew, "give", patient)
    asked = spec(Ref("none"), attack=Ref("seed-search", {"draws": 60}), limit=4)
    how = {"split": 1, "device": "cpu"}
    api.run(asked, results=Path("together"), workers=2, **how)
    assert helped == ["seed-search"]
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "another"))
    api.run(asked, results=Path("alone"), **how)
    assert told(Path("together")) == told(Path("alone"))


def run_killed(
    ray: Any, asked: Spec, monkeypatch: pytest.MonkeyPatch, kill: Any, console: Console = QUIET
) -> list[tuple[Record, bool]]:
    """Run a request on one worker; ``kill(pid)`` is called in a thread for each that begins."""
    begun = crew.Crew._has_begun

    def watched(self: crew.Crew, member: Any, answer: Place) -> None:
        begun(self, member, answer)
        Thread(target=kill, args=(answer.pid,), daemon=True).start()

    monkeypatch.setattr(crew.Crew, "_has_begun", watched)
    work, settings = chains(plan(asked)), Settings("cpu", artifacts=Artifacts())
    return list(crew.run_cells(ray, ONE, work, Store(Path("records")), settings, console))


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path, monkeypatch, ray, caplog) -> None:
    attack, kept = Ref("seed-search", {"draws": 40}), dict[Path, int]()

    def kill(pid: int) -> None:
        if kept:
            return
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not kept:
            files = tmp_path.glob("cache/attacks/*/church-*.json")
            kept.update({path: path.stat().st_mtime_ns for path in files})
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    said = StringIO()
    monkeypatch.setattr("bench.engine.display.EVERY", 0.0)
    found = run_killed(
        ray, spec(attack=attack, limit=3), monkeypatch, kill, Console(file=said, width=200)
    )
    assert [record.status for record, _ in found] == ["ok", "ok"]
    assert [len(record.rows) for record, _ in found] == [3, 3]
    assert kept
    assert re.search(
        r"0 of 2 cells; 1: church · none · seed-search · rounds \d+ of 40", said.getvalue()
    )
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())  # not again
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("worker 1 (process ")
    assert (
        "was killed or crashed while it computed church · none · seed-search; another goes on"
        in line
    )


@pytest.mark.slow
def test_a_cell_that_kills_its_workers_is_given_up(monkeypatch, ray) -> None:
    monkeypatch.setattr(crew, "LOSSES", 1)
    pids: list[int] = []

    def kill(pid: int) -> None:
        pids.append(pid)
        if len(pids) == 1:
            os.kill(pid, signal.SIGKILL)

    first, second = run_killed(ray, spec(), monkeypatch, kill)
    assert (first[0].status, second[0].status) == ("failed", "ok")
    assert "1 workers were killed or crashed while they computed it" in first[0].reason
    assert {record.status for record in Store(Path("records"))} == {"failed", "ok"}
    assert len(set(pids)) == 2


@pytest.mark.slow
def test_nothing_is_begun_when_the_time_is_up(ray) -> None:
    work, settings = chains(plan(spec())), Settings("cpu", artifacts=Artifacts())
    store = Store(Path("records"))
    assert not list(crew.run_cells(ray, ONE, work, store, settings, QUIET, lambda cell: False))


@pytest.mark.slow
def test_a_device_that_is_not_there_is_one_line(cli, ray) -> None:
    said = cli("run", "--model", "tiny-random", "--method", "none", "--task", "church", "--task", "nudity",
               "--limit", "1", "--workers", "2", "--device", "nope")  # fmt: skip
    assert said.code == 2
    assert said.err.startswith("error: --device nope cannot be used: ")
    assert said.err.count("\n") == 1


@pytest.mark.slow
def test_machines_that_differ_are_named(tmp_path, monkeypatch, ray) -> None:
    folders = [tmp_path / "records", tmp_path / "cache"]
    cluster.check_machines(ray, folders)
    assert not [path for folder in folders for path in folder.iterdir()]
    with monkeypatch.context() as patch:  # a folder of the same name that is another
        patch.setattr(cluster, "write", lambda path, data: path.parent.mkdir(exist_ok=True))
        with pytest.raises(StoreError, match=f"does not see {folders[0]} of this machine"):
            cluster.check_machines(ray, folders)
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.1" if name == "torch" else version(name)
    )
    with pytest.raises(SpecError, match=r"has torch .*, expected 0.1 as on this machine: install"):
        cluster.check_machines(ray, folders)
