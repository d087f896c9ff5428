"""What is not shipped: the listing of ``bench assets``, and fetching."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from bench import AssetError, Card, SpecError
from bench import cli as cli_module
from bench.errors import UnknownNameError
from bench.plan.cell import Cell
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref, create
from bench.sources import assets as assets_module
from bench.sources.assets import ASSETS, NETWORK, Asset, content_digest, here, locate
from bench.sources.hub import hub_source
from bench.tasks import entries as entries_module
from bench.tasks.inventory import fetch, inventory
from bench.tasks.tasks import needs

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REAL, TABLE = dict(ASSETS), entries_module._table
ENTRIES = {
    "judge": Asset("A judge's weights", "hub:a/judge@v1", 12, "MIT", "folder"),
    "one-file": Asset("One file of a repository", "hub:a/b/model.onnx", 0, "", "file"),
    "captions": Asset("Captions", "hub-dataset:a/captions/c.csv", 3, "CC-BY-4.0", "file"),
    "network": Asset("A network", "hub:a/network", 5, "MIT", "folder", NETWORK),
    "paper": Asset("A paper's list", "https://example.org/list.csv", 0, "", "file"),
    "inside": Asset("In a package", "the package bench", 1, "", "file", installed="bench/py.typed"),
}


LISTED = [".gitattributes", "README.md", "config.json", "flax_model.msgpack", "merges.txt", "vocab.json",
          "preprocessor_config.json", "pytorch_model.bin", "special_tokens_map.json", "tf_model.h5",
          "tokenizer.json", "tokenizer_config.json", "onnx/model.onnx"]  # fmt: skip
"""The files of openai/clip-vit-base-patch32: its weights in three formats."""


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
    monkeypatch.setattr("bench.tasks.entries._table", lambda world, root: table)


def _cache(root: Path, repo: str, ref: str, *files: str) -> Path:
    folder = root / "hub" / repo
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / ref).write_text(COMMIT)
    for file in files:
        path = folder / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
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


def test_what_is_here_in_part_is_not_here(cli, tmp_path: Path) -> None:
    """A download that was stopped, or links of the cache to files that were deleted."""
    folder = _cache(tmp_path, "models--a--network", "main", "config.json", "model.safetensors")
    assert here(ASSETS["network"]) is None
    message = rf"network is not here in whole: {folder} lacks preprocessor_config.json \(A network"
    with pytest.raises(AssetError, match=message):
        locate("network")
    shown = {item.name: (bool(item.path), item.partly) for item in inventory({})}
    assert shown["network"] == (False, True) and shown["judge"] == (False, False)
    assert "here: in part;" in cli("assets").out
    (folder / "preprocessor_config.json").write_text("{}")
    assert here(ASSETS["network"]) == locate("network") == folder
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(AssetError, match=r"lacks model\*.safetensors or pytorch_model\*.bin"):
        locate("network")
    (folder / "pytorch_model.bin").write_text("x")
    assert locate("network") == folder


def test_paths_of_ones_own_that_are_not_what_was_expected(cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    cases = {
        "network=file": "--asset network=file: expected a folder, there is none",
        "network=folder": "--asset network=folder: expected a folder with config.json",
        "network=loop": "--asset network=loop: expected a folder, there is none",
        "paper=folder": "--asset paper=folder: expected a file, there is none",
        "paper=dangling": "--asset paper=dangling: expected a file, there is none",
        "paper=nowhere": "--asset paper=nowhere: expected a file, there is none",
        "papr=file": "unknown asset 'papr'. Did you mean 'paper'? Known: captions, inside, judge, "
                     "network, one-file, paper",
        "paper": "--asset: expected NAME=PATH, got 'paper'",
        "paper=": "--asset: expected NAME=PATH, got 'paper'",
    }  # fmt: skip
    for given, message in cases.items():
        said = cli("assets", "--asset", given)
        assert (said.code, said.out, said.err) == (2, "", f"error: {message}\n")


def test_files_that_may_not_be_read(cli, monkeypatch, tmp_path: Path) -> None:
    """Tests may run as root, who may read everything: the system's refusal is put in."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").touch()

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", "mine/a")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", refuse)
        said = cli("assets", "--asset", "network=mine")
    message = "error: --asset network=mine cannot be read: Permission denied\n"
    assert (said.code, said.err) == (2, message)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(AssetError, match="mine/a cannot be read: Permission denied"):
            content_digest(tmp_path / "mine")


def test_a_digest_is_of_what_is_there_now(tmp_path: Path, monkeypatch) -> None:
    file, folder = tmp_path / "a", tmp_path / "d"
    file.write_text("one")
    folder.mkdir()
    (folder / "b").write_text("two")
    before = content_digest(file), content_digest(folder)
    assert before[0] == hashlib.sha256(b"one").hexdigest()[:16]
    inner = hashlib.sha256(b"two").hexdigest()
    assert before[1] == hashlib.sha256(f"b {inner}\n".encode()).hexdigest()[:16]
    calls = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        assets_module.hashlib, "file_digest", lambda *a: calls.append(a) or real(*a)
    )
    assert (content_digest(file), content_digest(folder), calls) == (*before, [])  # not read again
    file.write_text("other")
    (folder / "c").symlink_to("c")  # a loop is no file
    assert content_digest(file) != before[0] and content_digest(folder) == before[1]


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
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: LISTED)
    assert fetch("network") == tmp_path / "got"
    _, network = asked.pop()
    taken = {n for n in LISTED if any(fnmatch(n, p) for p in network["allow_patterns"])}
    assert taken == {"config.json", "preprocessor_config.json", "pytorch_model.bin", "tokenizer.json",
                     "tokenizer_config.json", "special_tokens_map.json"}  # fmt: skip
    safe = [*LISTED, "model.safetensors"]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: safe)
    fetch("network")
    _, network = asked.pop()
    weights = [n for n in safe if any(fnmatch(n, p) for p in network["allow_patterns"])
               and n.endswith((".bin", ".safetensors"))]  # fmt: skip
    assert weights == ["model.safetensors"]  # once
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: ["README.md"])
    with pytest.raises(AssetError, match="a/network on the hub has no config.json"):
        fetch("network")
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
                "inside, judge, network, one-file, paper, sd14, sd15, sd21, sd21-base"),
])  # fmt: skip
def test_what_cannot_be_fetched(cli, name: str, code: int, message: str) -> None:
    said = cli("assets", "--fetch", name)
    assert (said.code, said.out, said.err) == (code, "", f"error: {message}\n")


def test_fetching_without_network_is_one_line(cli) -> None:
    said = cli("assets", "--fetch", "one-file")
    assert said.code == 4
    assert said.err.startswith("error: cannot fetch a/b from the hub: ")
    assert all(len(line) <= 80 for line in said.err.splitlines()[1:])


def _answer(kind: str, code: int):
    """Return what the client raises for an answer of the hub."""
    from huggingface_hub import errors

    cls = getattr(errors, kind)
    error = cls.__new__(cls)
    Exception.__init__(error, f"{code} Client Error. (Request ID: Root=1-6-5)")
    error.response = SimpleNamespace(status_code=code)
    return error


@pytest.mark.parametrize(("kind", "code", "message"), [
    ("GatedRepoError", 403, "it is gated: accept its licence at https://huggingface.co/{repo}, log in "
                            "with `hf auth login` or set HF_TOKEN, and fetch it again"),
    ("RepositoryNotFoundError", 401, "there is no such repository, or it is private: see "
                                     "https://huggingface.co/{repo}, or log in with `hf auth login`"),
    ("RevisionNotFoundError", 404, "it has no revision v1: see https://huggingface.co/{repo}"),
    ("HfHubHTTPError", 401, "access is refused: accept its licence at https://huggingface.co/{repo}"),
    ("HfHubHTTPError", 500, "500 Client Error"),
])  # fmt: skip
def test_what_the_hub_refuses(cli, monkeypatch, kind: str, code: int, message: str) -> None:
    def refuse(*_args, **_kwargs):
        raise _answer(kind, code)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", refuse)
    for name, repo in (("judge", "a/judge"), ("sd14", "CompVis/stable-diffusion-v1-4")):
        if kind.startswith("Revision") and name == "sd14":
            continue
        said = cli("assets", "--fetch", name)
        start = f"error: cannot fetch {repo} from the hub: {message.format(repo=repo)}"
        assert said.code == 4
        assert said.err.startswith(start), said.err
        assert all(len(line) <= 80 for line in said.err.splitlines()[1:])
    said = cli("assets", "--fetch", "network", "--fetch", "papr")
    assert (said.code, "unknown asset 'papr'" in said.err) == (
        2,
        True,
    )  # before anything is fetched


def test_every_asset_that_is_missing_is_named_at_once(cli, monkeypatch, tmp_path: Path) -> None:
    """Of the tasks' judges, the attack, the method, and the model itself."""
    undo = dict(ASSETS)
    for name in (*undo, *REAL):
        monkeypatch.setitem(ASSETS, name, (undo | REAL)[name])
    monkeypatch.setattr("bench.tasks.entries._table", TABLE)
    said = cli("plan", "--model", "sd14", "--method", "safety-checker", "--attack", "p4d-official",
               "--task", "church", "--task", "coco")  # fmt: skip
    assert said.code == 4
    for flag in ("--asset resnet50-ms=", "--asset clip-vit-h14=", "--asset safety-checker=",
                 "--asset coco-30k=", "--asset inception=", "or coco-reference=",
                 "--fetch safety-checker", "--model FOLDER for sd14"):  # fmt: skip
        assert flag in said.err, flag
    assert all(len(line) <= 80 for line in said.err.splitlines()[1:])


def test_a_methods_asset_is_part_of_what_it_made(monkeypatch, tmp_path: Path) -> None:
    for name in REAL:
        monkeypatch.setitem(ASSETS, name, REAL[name])
    monkeypatch.setattr("bench.tasks.entries._table", TABLE)

    def cell(checker: str, content: str) -> Cell:
        given = {"safety-checker": tmp_path / checker, "resnet50-ms": tmp_path / "resnet"}
        for path in given.values():
            path.mkdir(exist_ok=True)
            (path / "config.json").write_text("{}")
        (given["safety-checker"] / "model.safetensors").write_text(content)
        methods, attacks = (Ref("safety-checker"),), (Ref("none"),)
        (one,) = plan(Spec("sd14", methods, attacks, ("church",), assets=given))
        return one.cell

    first, moved, other = cell("a", "one"), cell("b", "one"), cell("c", "two")
    assert list(first.method.files) == ["safety-checker"]
    assert (first.id, first.erase_key) == (moved.id, moved.erase_key)
    assert first.erase_key != other.erase_key
    assert create("methods", first.method).weights is None
