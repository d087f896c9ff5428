"""``bench doctor`` and ``bench cache``."""

from __future__ import annotations

import json
import os
import time
from importlib import metadata
from pathlib import Path

import pytest

from bench.engine import doctor
from bench.errors import StoreError
from bench.store import upkeep
from bench.store.artifacts import Artifacts

DAY = 24 * 3600


@pytest.fixture
def cache() -> Artifacts:
    """Return a cache with two images, of which one is ten days old, and an erasure."""
    found = Artifacts()
    for key in ("aa1", "bb2"):
        found.save(found.image(key), key.encode() * 100)
    found.save(found.erasure("cc3") / "delta.safetensors", b"delta")
    old = time.time() - 10 * DAY
    os.utime(found.image("bb2"), (old, old))
    return found


def test_size(cli, cache: Artifacts) -> None:
    parts = {part["part"]: part for part in json.loads(cli("cache", "size", "--json").out)["parts"]}
    assert (parts["images"]["files"], parts["images"]["size"]) == (2, 2 * (300 + 64))
    assert parts["erasures"]["files"] == 1
    assert "2 files: images" in cli("cache", "size").out


def test_verify_names_what_is_damaged(cli, cache: Artifacts) -> None:
    assert "nothing is damaged" in cli("cache", "verify").out
    path = cache.image("aa1")
    path.write_bytes(b"X" + path.read_bytes()[1:])
    cache.image("cc3").parent.mkdir()
    cache.image("cc3").write_bytes(cache.image("bb2").read_bytes())  # whole, but not its own place
    said = cli("cache", "verify")
    assert said.code == 5
    assert [line for line in said.out.splitlines() if line.startswith("damaged: ")] == [
        f"damaged: {path}",
        f"damaged: {cache.image('cc3')}",
    ]
    assert str(cache.image("bb2")) not in said.out


def test_prune_deletes_what_is_old(cli, cache: Artifacts) -> None:
    assert (
        "1 files, 0.0 MB would be deleted" in cli("cache", "prune", "--days", "5", "--dry-run").out
    )
    assert cache.image("bb2").exists()
    assert "1 files" in cli("cache", "prune", "--days", "5").out
    assert not cache.image("bb2").exists()
    assert cache.image("aa1").exists()
    assert "1 files" in cli("cache", "prune", "--days", "0", "--part", "erasures").out
    assert cache.image("aa1").exists()


def test_prune_forgets_pictures_that_it_may_take_the_images_of(cli, cache: Artifacts) -> None:
    mark = cache.undrawn(Path("results/a.png"))
    mark.parent.mkdir()
    mark.touch()
    cli("cache", "prune", "--days", "5", "--dry-run")
    assert mark.exists()
    cli("cache", "prune", "--days", "5")
    assert not mark.exists()


@pytest.mark.parametrize("days", ["inf", "1e300", "nan", "-1"])
def test_prune_takes_days_that_are_a_time(cli, cache: Artifacts, days: str) -> None:
    said = cli("cache", "prune", "--days", days)
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "--days" in said.err


def test_prune_leaves_records(cli, cache: Artifacts) -> None:
    record = cache.root / "records" / "emoji" / "r.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    cli("cache", "prune", "--days", "0")
    assert record.exists()
    said = cli("cache", "prune", "--part", "records")
    assert (said.code, record.exists()) == (2, True)


def test_every_part_of_the_cache_is_known(cli) -> None:
    """A run writes nothing that ``bench cache`` does not count, beside locks and marks."""
    cli("run", "--model", "tiny-random", "--limit", "2", "--method", "none", "--attack", "none",
        "--task", "church")  # fmt: skip
    folders = {path.name for path in Artifacts().root.iterdir()}
    assert {"images", "erasures"} <= folders
    assert folders - {"locks", "fresh", "undrawn"} <= set(upkeep.PARTS)
    assert list(upkeep.damaged(Artifacts())) == []


def test_doctor_finds_nothing_wrong_here(cli) -> None:
    said = cli("doctor")
    assert (said.code, said.err) == (0, "")
    found = {item["about"]: item for item in json.loads(cli("doctor", "--json").out)}
    assert found["torch"]["says"] == metadata.version("torch")
    assert found["emoji-sd"]["state"] == "ok"


def test_doctor_names_versions_that_do_not_fit(cli, monkeypatch) -> None:
    real = metadata.version
    fake = {"scipy": "1.18.0", "clean-fid": "0.1.35"}
    monkeypatch.setattr(doctor, "version", lambda name: fake.get(name) or real(name))
    said = cli("doctor")
    assert said.code == 1
    lines = [line for line in said.out.splitlines() if line.startswith("wrong")]
    assert any("scipy" in line and "expected scipy<1.18" in line for line in lines)
    assert any("scipy 1.18.0 with clean-fid 0.1.35" in line for line in lines)


def test_doctor_names_broken_plugins_and_full_folders(cli, monkeypatch) -> None:
    import methods

    monkeypatch.setitem(methods.PLUGINS, "broken", "methods.nowhere:X")
    Path("results").write_text("a file")

    def full(folder: Path) -> None:
        raise StoreError(f"cannot write {folder}")

    monkeypatch.setattr(doctor, "probe", full)
    said = cli("doctor")
    assert said.code == 1
    assert "No module named 'methods.nowhere'" in said.out
    assert "set BENCH_CACHE" in said.out
