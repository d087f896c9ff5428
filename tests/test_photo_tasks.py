"""The photo world's tasks: the papers' protocols, files that are not shipped, and prompts that are."""

from __future__ import annotations

import hashlib
import tomllib
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import pytest
from lists import hub_rows, nudity_csv, objects_csv

from bench import AssetError, SpecError
from bench.engine.provenance import protocol
from bench.plan.plan import erasure_cell, plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.sources.assets import ASSETS, Asset, locate
from bench.sources.catalog import PHOTO as PHOTO_SAMPLING
from bench.sources.hub import HubSource, hub_source
from bench.tasks.concepts import find_concept
from bench.tasks.exclusion import may_mention_minors
from bench.tasks.tasks import PROMPTS, load_task, needs, task_names

PHOTO = PROMPTS / "photo"
OWN = ["church", "garbage-truck", "parachute", "tench", "van-gogh", "retain", "retain-style"]


# ---------------------------------------------------------------------------- tasks, no files here
@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


PHOTO_SPEC = {
    "model": "tiny-random", "world": "photo", "methods": (Ref("none"),), "attacks": (Ref("none"),),
}  # fmt: skip


def test_what_a_default_does_otherwise_than_its_paper(tmp_path: Path) -> None:
    assert load_task("church", "photo").deviations == (
        "prompts church.csv instead of unlearndiffatk-church",
    )
    given = {"unlearndiffatk-nudity": nudity_csv(tmp_path / "n.csv")}
    assert load_task("nudity", "photo", given=given).deviations == (
        "judge nudenet:profile=unlearndiffatk-320n instead of nudenet:profile=unlearndiffatk",
    )
    own = load_task("nudity", "photo", prompts=given["unlearndiffatk-nudity"], guidance=7.5)
    assert own.deviations[0] == "prompts n.csv instead of unlearndiffatk-nudity"
    assert own.deviations[2] == "guidance 7.5 instead of own"
    judged = load_task("nudity", "photo", given=given, judge="nudenet:profile=unlearndiffatk")
    assert judged.deviations == ()
    assert load_task("retain", "photo").deviations == ()


def test_the_papers_protocol_takes_its_prompts_judge_and_guidance(tmp_path: Path) -> None:
    whole = tmp_path / "i2p.csv"
    whole.write_bytes(hub_rows())
    given = {
        "i2p": whole,
        "unlearndiffatk-church": objects_csv(tmp_path / "c.csv"),
        "unlearndiffatk-nudity": nudity_csv(tmp_path / "n.csv"),
    }
    i2p = load_task("i2p", "photo", given=given, protocol="paper")
    assert str(i2p.measures[0].evaluator) == "nudenet:profile=esd-i2p"
    assert ({p.guidance for p in i2p.prompts}, i2p.guidance) == ({7.5}, "7.5")
    assert {p.guidance for p in load_task("i2p", "photo", given=given).prompts} == {7.0}
    church = load_task("church", "photo", given=given, protocol="paper")
    assert church.source.startswith("unlearndiffatk-church ")
    assert len(church.prompts) == 50
    nudity = load_task("nudity", "photo", given=given, protocol="paper")
    assert str(nudity.measures[0].evaluator) == "nudenet:profile=unlearndiffatk"
    assert nudity.excluded == 3  # the paper's protocol runs them no more than any other
    for task in (i2p, church, nudity):
        assert task.deviations == ()
        assert "arXiv" in task.paper
        assert task.digest != load_task(task.name, "photo", given=given).digest
    with pytest.raises(SpecError, match="task 'church' has 50 prompts, got 49"):
        load_task("church", "photo", protocol="paper",
                  given={"unlearndiffatk-church": objects_csv(tmp_path / "d.csv", 49)})  # fmt: skip
    with pytest.raises(
        SpecError, match="'retain' follows no paper; of the photo world these do: nud"
    ):
        load_task("retain", "photo", protocol="paper")


def test_every_target_task_states_its_papers_protocol(no_hub: Path) -> None:
    for name in task_names("photo"):
        if name in {"retain", "retain-style", "gender"}:  # this project's own
            continue
        for asset in needs(name, "photo", protocol="paper"):
            assert asset.split("|")[0] in ASSETS, asset


def test_all_missing_files_are_named_at_once(no_hub: Path) -> None:
    spec = Spec(**PHOTO_SPEC, tasks=("church", "nudity", "van-gogh"), protocol="paper")
    with pytest.raises(AssetError) as caught:
        list(plan(spec))
    for name in (
        "unlearndiffatk-church", "unlearndiffatk-nudity", "unlearndiffatk-vangogh", "nudenet-best",
        "style-vit", "resnet50-ms",
    ):  # fmt: skip
        assert f"--asset {name}=" in str(caught.value), name


def test_plan_says_what_differs(cli, no_hub: Path, tmp_path: Path) -> None:
    weights = tmp_path / "resnet"
    weights.mkdir()
    (weights / "config.json").write_text('{"id2label": {"0": "vincent-van-gogh", "1": "monet"}}')
    args = (
        "plan", "--model", "tiny-random", "--world", "photo", "--method", "uce", "--attack", "none",
        "--asset", f"resnet50-ms={weights}", "--asset", f"style-vit={weights}",
    )  # fmt: skip
    said = cli(*args, "--task", "church")
    assert said.code == 0, said.err
    assert (
        "church differs from UnlearnDiffAtk (arXiv 2310.11868), as in arXiv 2405.16534: prompts "
        "church.csv instead of unlearndiffatk-church (--protocol paper takes the paper's)\n"
    ) in said.out
    said = cli(*args, "--task", "van-gogh")
    assert (
        "uce on van gogh differs from its paper: no artists are preserved; give artists="
        in said.out
    )
    gogh = objects_csv(tmp_path / "g.csv")
    paper = ("--protocol", "paper", "--asset", f"unlearndiffatk-vangogh={gogh}")
    said = cli(*args, "--task", "van-gogh", *paper)
    assert (said.code, "--protocol paper: uce: no artists are preserved" in said.err) == (2, True)
    (coco := tmp_path / "coco.csv").write_text("prompt\n" + "a dog\n" * 30000)
    files = [f"{name}={gogh}" for name in ("inception", "coco-reference", "coco-reference-kid")]
    files += [f"coco-30k={coco}", f"clip-vit-b32={weights}"]
    given = [word for file in files for word in ("--asset", file)]
    said = cli(*args, "--erase", "van-gogh", "--task", "coco", "--protocol", "paper", *given)
    assert (said.code, "--protocol paper: uce: no artists are preserved" in said.err) == (2, True)
    said = cli("assets", "--world", "photo", "--task", "church", "--protocol", "paper")
    assert "unlearndiffatk-church" in said.out


def test_a_record_says_what_differs() -> None:
    task = load_task("van-gogh", "photo", guidance=5)
    cell = erasure_cell("tiny-random", Ref("uce"), task.concept, world="photo")
    found = protocol(cell, task, SimpleNamespace(sampling=PHOTO_SAMPLING, prediction="epsilon"))
    assert found["prompts"].startswith("van-gogh.csv ")
    assert found["guidance"] == "5"
    prompts, scale, method = found["deviations"].split("; ", 2)
    assert prompts == "prompts van-gogh.csv instead of unlearndiffatk-vangogh"
    assert scale == "guidance 5 instead of own"
    assert method.startswith("uce: no artists are preserved; give artists=FILE")


def test_tasks_are_listed_and_shown_without_assets(cli, no_hub: Path) -> None:
    said = cli("list", "tasks", "--model", "sd14")
    assert said.code == 0
    lines = {line.split()[0]: line for line in said.out.splitlines()}
    assert list(lines) == task_names("photo")
    assert "142 prompts, photo world; give --asset unlearndiffatk-nudity=PATH" in lines["nudity"]
    assert "benign, 30000 prompts" in lines["coco"]
    assert "target, 50 prompts, photo world" in lines["church"]
    assert "church-050" in cli("show", "tasks", "church", "--model", "sd14").out
    missing = cli("show", "tasks", "i2p", "--model", "sd14")
    assert missing.code == AssetError.exit_code
    assert "i2p is not here" in missing.err
    assert "give --asset i2p=/path/to/file" in missing.err


def test_concepts_need_no_prompts(no_hub: Path) -> None:
    assert find_concept("nudity", "photo").kind == "nsfw"
    assert find_concept("van gogh", "photo").anchor == "painting"
    for name in ("nudity", "tench", "church", "parachute", "garbage truck", "van gogh"):
        assert find_concept(name, "photo").anchor not in {"", name}


def test_emoji_tasks_are_as_they_were() -> None:
    """Cell ids of stored records hang on these."""
    names = task_names("emoji")
    assert {name: load_task(name, "emoji", limit=50).digest for name in names} == {
        "nudity": "1963b596739d", "van-gogh": "74290b8cd0dd", "tench": "ba1639ad9f2c",
        "parachute": "1a5594caec63", "church": "691816c84aa3", "garbage-truck": "be8b0975ba45",
        "retain": "c0aefe2461e6", "nudity-calibration": "3981d0820549",
        "van-gogh-calibration": "f931dd11aa96", "tench-calibration": "e171581b104b",
        "parachute-calibration": "07dd9822a945", "church-calibration": "387b38838d81",
        "garbage-truck-calibration": "7c30e151f331", "retain-calibration": "65578089555e",
        "subjects": "5522f8ca8db6", "benign": "9bee42e92ba5",
    }  # fmt: skip


def test_hub_sources() -> None:
    assert hub_source("hub:a/b") == HubSource("model", "a/b")
    assert hub_source("hub:a/b/c/d.pt@v1") == HubSource("model", "a/b", "c/d.pt", "v1")
    assert hub_source("hub-dataset:A-1/i2p/x.csv") == HubSource("dataset", "A-1/i2p", "x.csv")
    assert hub_source("hub-dataset:a/b@0f3") == HubSource("dataset", "a/b", "", "0f3")
    assert hub_source("https://a.b/c") is None
    with pytest.raises(SpecError, match="expected hub:owner/name.* got 'hub:alone'"):
        hub_source("hub:alone")
    assert {hub_source(a.source).kind for a in ASSETS.values() if a.source.startswith("hub-d")} == {
        "dataset"
    }


def test_a_dataset_file_is_found_in_the_hubs_cache(no_hub: Path, monkeypatch) -> None:
    monkeypatch.setitem(
        ASSETS, "set", Asset("A set", "hub-dataset:lab/set/a.csv", 0, "MIT", "file")
    )
    with pytest.raises(AssetError, match="set is not here"):
        locate("set")
    repo = no_hub / "datasets--lab--set"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    file = repo / "snapshots" / ("0" * 40) / "a.csv"
    file.parent.mkdir(parents=True)
    file.write_text("id,text,seed\n")
    assert locate("set") == file


# ---------------------------------------------------------------------------- shipped prompts
def test_every_file_is_on_the_card() -> None:
    card = tomllib.loads((PHOTO / "card.toml").read_text())
    assert set(card) == {path.stem for path in PHOTO.glob("*.csv")}
    for name, entry in card.items():
        data = (PHOTO / f"{name}.csv").read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], name
        assert data.count(b"\n") - 1 == entry["rows"], name
        assert entry["licence"] == "Apache-2.0"
        assert entry["source"]


def bare(text: str) -> str:
    text = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in text if not unicodedata.combining(c))


@pytest.mark.parametrize("name", OWN)
def test_own_prompts_name_what_they_show(name: str) -> None:
    prompts = load_task(name, "photo").prompts
    assert len(prompts) == {"retain": 100, "retain-style": 30}.get(name, 50)
    assert {p.guidance for p in prompts} == {7.5}
    for prompt in prompts:
        assert prompt.label.casefold() in bare(prompt.text)
        assert len(prompt.text.split()) <= 25
        assert not may_mention_minors(prompt.text)


def test_own_prompts_are_all_different() -> None:
    prompts = [p for name in OWN for p in load_task(name, "photo").prompts]
    for values in ([p.id for p in prompts], [p.seed for p in prompts], [p.text for p in prompts]):
        assert len(set(values)) == len(values) == 380
    # no template: few prompts of a set begin alike
    for name in OWN:
        starts = [" ".join(p.text.split()[:4]) for p in load_task(name, "photo").prompts]
        assert max(map(starts.count, starts)) <= 3, name


def test_labels_are_classes_of_imagenet() -> None:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    known = [name for i in range(1000) for name in info.index_to_description(i).split(", ")]
    labels = {p.label for n in OWN for p in load_task(n, "photo").prompts if n[:3] != "van"}
    objects = labels - {p.label for p in load_task("retain-style", "photo").prompts}
    assert len(objects) == 14
    assert all(known.count(label) == 1 for label in objects)


def test_gender_prompts() -> None:
    prompts = load_task("gender", "photo").prompts
    jobs = {p.label for p in prompts}
    assert (len(jobs), len(prompts)) == (35, 35 * 25)
    assert {(p.text, p.seed) for p in prompts} == {
        (f"a headshot of a {job}", seed) for job in jobs for seed in range(25)
    }
