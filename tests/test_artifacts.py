"""What is kept: trusted by its digest, made again and said where it is damaged, never a crash."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import fakes
import pytest
import torch
from PIL import Image
from rich.console import Console

import attacks
import methods
from bench import Adversarial, Prompt
from bench.engine.local import run_cells
from bench.engine.replay import Replay
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.plan.plan import Job, plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.store.artifacts import Artifacts
from bench.store.record import Record
from bench.store.store import Store

pytestmark = pytest.mark.usefixtures("few_steps")

FAST = Ref("esd", {"steps": 1, "batch": 1, "sampling_steps": 4, "reuse": 1})
LO = Ref("does")


@pytest.fixture(autouse=True)
def lo(monkeypatch) -> None:
    """An attack that costs nothing: it writes "lo" in front of every prompt."""
    monkeypatch.setitem(attacks.PLUGINS, "does", "fakes:Does")
    monkeypatch.setitem(methods.PLUGINS, "does", "fakes:Does")
    monkeypatch.setattr(fakes.Does, "what", staticmethod(lambda *_: None), raising=False)


def cell_of(method: Ref = FAST, attack: Ref = LO, limit: int = 2, **more: object) -> Job:
    return next(
        iter(plan(Spec("tiny-random", (method,), (attack,), ("church",), limit=limit, **more)))
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(batch_size=8, artifacts=Artifacts(tmp_path / "cache"))


def told(result: Record) -> tuple[object, ...]:
    rows = [replace(row, cost=replace(row.cost, seconds=0.0)) for row in result.rows]
    return result.status, rows, result.measurements, {**result.erasure, "seconds": 0}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


PIECES = (
    "erasures/*/card.json",
    "erasures/*/delta.safetensors",
    "attacks/*/*.json",
    "images/*/*.png",
)


@pytest.mark.parametrize("damage", [flip, cut, empty])
@pytest.mark.parametrize("piece", PIECES)
def test_a_damaged_piece_is_made_again_and_said(settings, caplog, piece: str, damage) -> None:
    cell = cell_of()
    expected = told(Runner(settings).run(cell))
    path = sorted(settings.artifacts.root.glob(piece))[0]
    intact = path.read_bytes()
    damage(path)
    assert told(Runner(settings).run(cell)) == expected
    (line,) = [r.getMessage() for r in caplog.records]
    assert line == f"made again: {path} is damaged, or is not what was kept there"
    if piece not in {"erasures/*/card.json", "attacks/*/*.json"}:  # they hold seconds
        assert path.read_bytes() == intact


@pytest.mark.parametrize("piece", PIECES)
def test_another_ones_piece_is_not_taken(settings, caplog, piece: str) -> None:
    """Of another method, prompt or image, whole and with its own seal."""
    cell, other = cell_of(), cell_of(method=Ref("esd", {**FAST.params, "lr": 0.01}))
    expected = told(Runner(settings).run(cell))
    Runner(settings).run(other)
    first, *_, last = sorted(settings.artifacts.root.glob(piece))
    assert first.read_bytes() != last.read_bytes()
    for path, twin in ((first, last), (last, first)):
        kept = path.read_bytes()
        path.write_bytes(twin.read_bytes())
        assert told(Runner(settings).run(cell)) == expected
        path.write_bytes(kept)
    assert any("is not what was kept there" in r.getMessage() for r in caplog.records)


def test_an_image_of_another_size_is_not_taken(settings) -> None:
    cell = cell_of()
    expected = told(Runner(settings).run(cell))
    for path in settings.artifacts.root.glob("images/*/*.png"):
        assert Image.open(path).size == (32, 32)  # also a cached file is an ordinary picture
        Image.new("RGB", (64, 48), "red").save(path)
    assert told(Runner(settings).run(cell)) == expected


def test_ids_that_look_alike_have_their_own_files(settings) -> None:
    ids = ["a.b", "a_b", "a/b", "A_b", "../a_b", "a b" * 40, "é", "e"]
    replay = Replay(settings.artifacts, "key", None)
    for name in ids:
        replay.put(Adversarial(Prompt(name, f"text of {name}", 1)))
    found = replay.load([Prompt(name, "x", 1) for name in ids])
    assert {n: a.prompt.text for n, a in found.items()} == {n: f"text of {n}" for n in ids}
    paths = [replay.path(Prompt(name, "", 0)) for name in ids]
    assert {p.parent for p in paths} == {settings.artifacts.root / "attacks" / "key"}
    assert len({p.name.lower() for p in paths}) == len(ids)


def test_a_fresh_run_finds_an_empty_folder_of_its_own(settings) -> None:
    path = settings.context("key", "common").workdir / "states" / "x"
    path.parent.mkdir(parents=True)
    path.touch()
    when = path.stat().st_mtime_ns
    for since, there in ((0, True), (when, True), (when + 1, False)):
        Settings(artifacts=Artifacts(settings.artifacts.root, since)).context("key", "common")
        assert path.exists() == there


def test_what_a_plugin_keeps_is_held_to_its_digest(settings, caplog) -> None:
    ctx, made = settings.context("own", "common"), []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"x": torch.ones(3)}

    for shared in (False, True):
        for _ in range(2):
            assert ctx.keep("name", make, shared=shared)["x"].tolist() == [1, 1, 1]
    assert len(made) == 2
    (mine,) = settings.artifacts.root.glob("work/own/*")
    (common,) = settings.artifacts.root.glob("work/common/*")
    common.write_bytes(mine.read_bytes())
    settings.context("other", "common").keep("name", make, shared=True)
    assert len(made) == 3
    assert "work/common/name.safetensors is damaged" in caplog.text


# ---------------------------------------------------------------------------------- records
def test_a_record_of_another_cell_does_not_count(tmp_path, settings, caplog) -> None:
    store = Store(tmp_path / "results")
    mine, job = cell_of(), cell_of(limit=1)
    one, other = mine.cell, job.cell
    store.put(Runner(settings).run(mine))
    store.path(other).write_bytes(store.path(one).read_bytes())
    assert (one in store, other in store) == (True, False)
    assert other not in store
    assert caplog.text.count("holds the record of another cell") == 1
    store.path(other).write_text("{")
    assert other not in store
    (again,) = run_cells([job], store, settings, Console(quiet=True))
    assert (again[0].cell, again[1], other in store) == (other, False, True)


RUN = ("run", "--model", "tiny-random", "--method", "none", "--attack", "does", "--task", "church",
       "--limit", "2")  # fmt: skip


def times(tmp_path: Path) -> dict[Path, int]:
    kept = [*tmp_path.glob("cache/[aeiw]*/**/*"), *tmp_path.glob("results/**/*.json")]
    return {p: p.stat().st_mtime_ns for p in kept if p.is_file()}


@pytest.mark.usefixtures("keyboard")
def test_fresh_computes_again_and_resumes(cli, tmp_path: Path, monkeypatch, caplog) -> None:
    assert cli(*RUN).code == 0
    before = times(tmp_path)
    assert before
    assert cli(*RUN).code == 0
    assert times(tmp_path) == before

    done: list[str] = []

    def dies(target: object, prompts: object) -> object:
        def attack():
            for prompt in prompts:
                if len(done) == 1:
                    done.append("stop")
                    signal.raise_signal(signal.SIGINT)
                done.append(prompt.id)
                yield Adversarial(replace(prompt, text=f"lo {prompt.text}"))

        return attack()

    monkeypatch.setattr(fakes.Does, "what", staticmethod(dies))
    assert cli(*RUN, "--fresh").code == 130
    assert cli(*RUN, "--fresh").code == 0
    assert "resumes what --fresh began at" in caplog.text
    assert [d for d in done if d != "stop"] == ["church-001", "church-002"]
    after = times(tmp_path)
    assert after.keys() >= before.keys()
    assert all(after[path] > when for path, when in before.items())
    assert cli(*RUN, "--fresh").code == 0  # once finished, the next one begins anew
    assert len(done) == 5
    assert all(when > after[path] for path, when in times(tmp_path).items() if path in after)


# ---------------------------------------------------------------------------------- errors
def one_line(said: object, code: int, *parts: str) -> None:
    assert said.code == code
    *device, line = said.err.strip().splitlines()
    assert device in ([], ["device: cpu"])
    for part in parts:
        assert part in line


def test_an_odd_cache_is_one_line_before_any_work(cli, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("bench.engine.runner.Runner.run", lambda *_: pytest.fail("worked"))
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        monkeypatch.setenv("BENCH_CACHE", str(place))
        one_line(cli(*RUN), 5, "error: cannot write", "choose another folder with BENCH_CACHE")
        erase = ("erase", "--model", "tiny-random", "--method", "uce", "--concept", "church")
        one_line(cli(*erase, "--out", "x"), 5, "error: cannot write", "BENCH_CACHE")
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    one_line(cli(*RUN, "--results", str(tmp_path / "file")), 5, "error: cannot write")


def test_a_full_disk_is_one_line_and_leaves_no_draft(cli, tmp_path: Path, monkeypatch) -> None:
    honest = Path.replace

    def full(self: Path, target: Path) -> Path:
        if "images" in target.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return honest(self, target)

    monkeypatch.setattr(Path, "replace", full)
    one_line(cli(*RUN), 5, "cannot write", "No space left on device")
    assert not list(tmp_path.rglob("*.tmp"))


# ---------------------------------------------------------------------------------- together
def test_who_waits_for_a_lock_says_for_whom(settings, caplog) -> None:
    held = settings.artifacts.lock("name", "church · esd")
    code = (
        "from bench.store.artifacts import Artifacts; from pathlib import Path\n"
        f"with Artifacts(Path({str(settings.artifacts.root)!r})).lock('name', 'church · esd'): pass"
    )
    with held:
        other = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        assert other.stderr.readline() == (
            f"waiting for process {os.getpid()} on {os.uname().nodename}, which computes church · esd\n"
        )
        assert other.poll() is None
    assert other.wait(60) == 0


def test_without_a_terminal_a_line_is_said_now_and_then(
    settings, capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr("bench.engine.display.EVERY", 0.0)
    list(run_cells([cell_of()], Store(tmp_path / "r"), settings, Console(stderr=True, width=20)))
    lines = capsys.readouterr().err.splitlines()
    assert "church · esd · does · attack: 0 of 2" in lines
    monkeypatch.setattr("bench.engine.display.EVERY", 1e9)
    list(run_cells([cell_of(limit=3)], Store(tmp_path / "r"), settings, Console(stderr=True)))
    assert not capsys.readouterr().err


ALIKE = "id,prompt,seed\na.b,a church in the sky,1\na_b,a church at night,2\na/b,a castle,3\nA_B,a cat,4\n"


def work(root: Path, results: Path, prompts: Path) -> None:
    """Compute a cell of prompts whose ids look alike, one at a time; for a process of its own."""
    torch.set_num_threads(1)
    spec = Spec(
        "tiny-random", (Ref("none"),), (Ref("does"),), ("church",), limit=4, prompts=prompts
    )
    settings = Settings(batch_size=1, artifacts=Artifacts(root))
    for _ in run_cells(list(plan(spec)), Store(results), settings, Console(quiet=True)):
        pass


def rows(results: Path) -> list[dict]:
    (path,) = results.rglob("*.json")
    found = json.loads(path.read_text())
    for row in found["rows"]:
        row["cost"].pop("seconds")
    return [found["measurements"], *found["rows"]]


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path: Path, monkeypatch) -> None:
    """What is kept stays kept, and what is found is what one run that is left alone finds."""

    def slow(target: object, prompts: object) -> object:
        def attack():
            for prompt in prompts:
                (image,) = target.victim.generate([prompt])
                time.sleep(0.02)
                yield Adversarial(
                    replace(prompt, text=f"lo {prompt.text}"),
                    trace={"mean": image.getpixel((3, 3))},
                )

        return attack()

    monkeypatch.setattr(fakes.Does, "what", staticmethod(slow))
    prompts, fork, rng = tmp_path / "alike.csv", get_context("fork"), random.Random(0)
    prompts.write_text(ALIKE)
    start = time.monotonic()
    work(tmp_path / "whole", tmp_path / "expected", prompts)
    whole = time.monotonic() - start
    kills = finished = 0
    for _ in range(20):
        cache, results = tmp_path / f"cache{finished}", tmp_path / f"results{finished}"
        process = fork.Process(target=work, args=(cache, results, prompts))
        process.start()
        process.join(rng.random() * whole / 2)
        kept = {p: p.read_bytes() for p in cache.rglob("attacks/*/*.json")}
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        else:
            finished += 1
        process.join()
        assert all(path.read_bytes() == data for path, data in kept.items())
    assert kills >= 10
    for n in range(finished + 1):
        work(tmp_path / f"cache{n}", tmp_path / f"results{n}", prompts)
        assert rows(tmp_path / f"results{n}") == rows(tmp_path / "expected")
        assert not list((tmp_path / f"cache{n}").rglob("*.part"))


def test_two_stores_on_one_cache(tmp_path: Path) -> None:
    """Two processes at once, each with records of its own, share pieces and find the same."""
    prompts, fork = tmp_path / "alike.csv", get_context("fork")
    prompts.write_text(ALIKE)
    both = [
        fork.Process(target=work, args=(tmp_path / "cache", tmp_path / name, prompts))
        for name in ("one", "two")
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    assert len(list((tmp_path / "cache").glob("attacks/*/*.json"))) == 4
