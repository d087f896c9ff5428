"""What is not shipped: the listing of ``bench assets``, and fetching."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from bench import AssetError, Card, SpecError
from bench import cli as cli_module
from bench.assets import ASSETS, Asset, here, locate
from bench.errors import UnknownNameError
from bench.hub import hub_source
from bench.inventory import fetch, inventory
from bench.tasks import needs

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ENTRIES = {
    "judge": Asset("A judge's weights", "hub:a/judge@v1", 12, "MIT", "folder"),
    "one-file": Asset("One file of a repository", "hub:a/b/model.onnx", 0, "", "file"),
    "captions": Asset("Captions", "hub-dataset:a/captions/c.csv", 3, "CC-BY-4.0", "file"),
    "paper": Asset("A paper's list", "https://example.org/list.csv", 0, "", "file"),
    "inside": Asset("In a package", "the package bench", 1, "", "file", installed="bench/py.typed"),
}


@dataclass(frozen=True)
class Judge:
    card: ClassVar = Card("needs two assets", "")
    scope: ClassVar = "image"

    def assets(self) -> tuple[str, ...]:
        return "judge", "inside"


@pytest.fixture(autouse=True)
def entries(monkeypatch, tmp_path: Path) -> None:
    """Put the entries of this test in place of the real ones, an empty hub cache, no network."""
    import evaluators

    for name in list(ASSETS):
        monkeypatch.delitem(ASSETS, name)
    for name, asset in ENTRIES.items():
        monkeypatch.setitem(ASSETS, name, asset)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(evaluators.PLUGINS, "judge", f"{__name__}:{Judge.__name__}")
    table = {
        "t": {"prompts": "asset:captions", "measures": [{"evaluator": "judge"}]},
        "shipped": {"prompts": "own.csv", "measures": []},
    }
    monkeypatch.setattr("bench.tasks._table", lambda world, root: table)


def _cache(root: Path, repo: str, ref: str, *files: str) -> Path:
    folder = root / "hub" / repo
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / ref).write_text(COMMIT)
    for file in files:
        path = folder / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True)
        path.write_text("x")
    return folder / "snapshots" / COMMIT


def test_sources() -> None:
    source = hub_source("hub-dataset:a/b/deep/file.csv@main")
    assert source and (source.kind, source.repo) == ("dataset", "a/b")
    assert (source.file, source.revision) == ("deep/file.csv", "main")
    assert hub_source("hub:a/b") == hub_source("hub:a/b") != hub_source("hub:a/b@1")
    assert hub_source("https://example.org") is None
    with pytest.raises(SpecError, match="expected hub:owner/name, .* got 'hub:a'"):
        hub_source("hub:a")


def test_what_is_here(tmp_path: Path) -> None:
    assert here(ASSETS["inside"]).name == "py.typed"
    assert [name for name in ENTRIES if here(ASSETS[name])] == ["inside"]
    with pytest.raises(AssetError, match=r"judge is not here \(A judge's weights, 12 MB, from hub"):
        locate("judge")
    folder = _cache(tmp_path, "models--a--judge", "v1", "w/model.safetensors")
    data = _cache(tmp_path, "datasets--a--captions", "main", "c.csv")
    assert locate("judge") == folder
    assert locate("captions") == data / "c.csv"
    assert here(ASSETS["one-file"]) is None


def test_everything_or_what_is_asked_for(tmp_path: Path) -> None:
    every = {item.name: item for item in inventory({})}
    assert list(every) == ["sd14", "sd15", "sd21", "sd21-base", *ENTRIES]
    assert every["sd14"].flag == "--model FOLDER"
    assert every["captions"].flag == "--asset captions=FILE"
    assert {name for name, item in every.items() if item.path} == {"inside"}
    assert list(needs("t", "photo")) == ["captions", "judge", "inside"]
    assert [i.name for i in inventory({}, tasks=["t"])] == ["captions", "judge", "inside"]
    assert [i.name for i in inventory({}, "sd14", ["t", "t"])][:2] == ["sd14", "captions"]
    assert not list(inventory({}, "tiny-random", ["shipped"]))
    (tmp_path / "mine.csv").touch()
    (mine,) = (i for i in inventory({"paper": tmp_path / "mine.csv"}) if i.name == "paper")
    assert mine.path == tmp_path / "mine.csv"
    with pytest.raises(UnknownNameError, match="unknown photo task 'u'. Known: shipped, t"):
        list(inventory({}, tasks=["u"]))


def test_table_fits_a_terminal(cli, monkeypatch) -> None:
    wide = cli("assets", "--task", "t", "--model", "sd14").out
    for text in ("sd14", "4266", "creativeml-openrail-m", "--model FOLDER", "--asset judge=FOLDER",
                 "hub:a/judge at v1", "A judge's weights", "licence not stated"):  # fmt: skip
        assert text in wide
    assert "paper" not in wide
    monkeypatch.setattr("sys.argv", ["bench", "assets"])
    with cli_module.out.capture() as shown:
        monkeypatch.setattr(cli_module.out, "_width", 80)
        with pytest.raises(SystemExit):
            cli_module.main()
    lines = shown.get().splitlines()
    assert len(lines) > 20
    assert max(map(len, lines)) <= 80
    said = cli("assets", "--model", "emoji-sd")
    assert said.out == "nothing is needed beside what is shipped\n"


def test_fetching(cli, monkeypatch, tmp_path: Path) -> None:
    """The client's two downloads are replaced: what they are asked for is tested, not the network."""
    asked = []

    def download(kind: str):
        def call(**kwargs):
            asked.append((kind, kwargs))
            return str(tmp_path / "got")

        return call

    monkeypatch.setattr("huggingface_hub.snapshot_download", download("snapshot"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download("file"))
    said = cli("assets", "--fetch", "judge", "--fetch", "one-file", "--fetch", "captions")
    assert said.out.splitlines() == [
        f"{n}: {tmp_path / 'got'}" for n in ("judge", "one-file", "captions")
    ]
    assert fetch("sd14") == tmp_path / "got"
    where = {"repo_type": "model", "revision": None}
    assert asked[0] == ("snapshot", {
        "repo_id": "a/judge", "repo_type": "model", "revision": "v1", "allow_patterns": None
    })  # fmt: skip
    assert asked[1] == ("file", {"repo_id": "a/b", **where, "filename": "model.onnx"})
    assert asked[2] == ("file", {
        "repo_id": "a/captions", "repo_type": "dataset", "revision": None, "filename": "c.csv"
    })  # fmt: skip
    kind, sd14 = asked[3]
    assert (kind, sd14["repo_id"]) == ("snapshot", "CompVis/stable-diffusion-v1-4")
    assert sd14["revision"] == "133a221b8aa7292a167afc5127cb63fb5005638b"
    assert "model_index.json" in sd14["allow_patterns"]


@pytest.mark.parametrize(("name", "code", "message"), [
    ("paper", 4, "paper is not on the hub: get it from https://example.org/list.csv "
                 "(A paper's list), then give --asset paper=/path/to/file"),
    ("papr", 2, "unknown asset 'papr'. Did you mean 'paper'? Known: captions, "
                "inside, judge, one-file, paper, sd14, sd15, sd21, sd21-base"),
])  # fmt: skip
def test_what_cannot_be_fetched(cli, name: str, code: int, message: str) -> None:
    said = cli("assets", "--fetch", name)
    assert (said.code, said.out, said.err) == (code, "", f"error: {message}\n")


def test_fetching_without_network_is_one_line(cli) -> None:
    said = cli("assets", "--fetch", "one-file")
    assert said.code == 4
    assert said.err.startswith("error: cannot fetch a/b from the hub: ")
    assert said.err.count("\n") == 1
