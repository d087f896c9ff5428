"""Images that were made elsewhere: which prompt each is of, and the record of judging them."""

from __future__ import annotations

import shutil
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import networks
import numpy as np
import pytest
from PIL import Image

from bench.core.types import UNSCORED, Prompt
from bench.engine.folder import find_images, judge_images, match, open_image, plan_folder, world_of
from bench.engine.runner import Runner
from bench.engine.settings import Settings
from bench.errors import SpecError
from bench.models import load_model
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.report.notes import notes
from bench.store.artifacts import Artifacts
from bench.store.record import Record
from bench.store.store import Store
from bench.tasks.tasks import Task, load_task

CHURCH = load_task("church", "emoji")


def picture(path: Path, seed: int = 0, size: int = 32, mode: str = "RGB") -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def files(*names: str) -> list[Path]:
    """Name files that need not be there: only names decide."""
    return [Path("folder") / name for name in names]


def task(*ids: str, excluded: tuple[str, ...] = ()) -> Task:
    """Return a task whose set has these rows, of which some never run."""
    prompts = tuple(Prompt(i, "x", 0) for i in ids if i not in excluded)
    return replace(CHURCH, prompts=prompts, rows=ids, exclusions={"never": len(excluded)})


def draw(name: str, folder: Path, limit: int | None = None) -> Path:
    """Write what tiny-random draws for a task, one file for each prompt, or each of the first."""
    folder.mkdir()
    prompts = load_task(name, "emoji").prompts[:limit]
    images = load_model("tiny-random", batch_size=25).generate(prompts)
    for prompt, image in zip(prompts, images, strict=True):
        image.save(folder / f"{prompt.id}.png")
    return folder


CHURCH_50 = ("--task", "church", "--limit", "50")
FIRST = 50  # images of the first prompts of church are judged as the edition that had no others


@pytest.fixture(scope="module")
def _drawn(tmp_path_factory) -> Path:
    return draw("church", tmp_path_factory.mktemp("church") / "drawn", FIRST)


@pytest.fixture
def drawn(_drawn: Path, tmp_path: Path) -> Path:
    """What tiny-random draws for church; each test has its own copy."""
    return Path(shutil.copytree(_drawn, tmp_path / "drawn"))


def judged(folder: Path, name: str = "church", **more) -> Record:
    settings = more.pop("settings", Settings(artifacts=Artifacts(folder.parent / "cache")))
    limit = FIRST if name == "church" else None
    return judge_images(*plan_folder(folder, name, **{"limit": limit} | more), settings)


def of_a_run(name: str, cache: Path, limit: int | None = None) -> Record:
    none = (Ref("none"),)
    (cell,) = plan(Spec("tiny-random", none, none, (name,), limit=limit))
    return Runner(Settings(batch_size=25, artifacts=Artifacts(cache))).run(cell)


# ---------------------------------------------------------------------------- the same as a run
def test_the_record_is_that_of_the_run_that_drew_the_images(drawn, tmp_path) -> None:
    ours, theirs = judged(drawn), of_a_run("church", tmp_path / "run", FIRST)
    assert ours.status == "ok"
    assert ours.measurements.keys() == theirs.measurements.keys() == {"asr"}
    assert replace(ours.measurements["asr"], detail={}) == theirs.measurements["asr"]
    for mine, other in zip(ours.rows, theirs.rows, strict=True):
        assert (mine.id, mine.text, mine.success, mine.own) == (
            other.id, other.text, other.success, other.own,
        )  # fmt: skip
        assert mine.detail["probability"] == pytest.approx(other.detail["probability"], abs=2e-4)
    assert ours.protocol["prompts"] == theirs.protocol["prompts"]
    assert ours.protocol["judge"] == theirs.protocol["judge"]
    assert ours.protocol["draw"] == "images made elsewhere, matched by id"
    assert (ours.cell.model, ours.cell.method.name, ours.cell.attack.name) == (
        "images", "images", "none",
    )  # fmt: skip


def test_a_measure_of_the_whole_set_is_that_of_the_run(tmp_path) -> None:
    """A run of the first 40 prompts, and a folder that has images of these alone."""
    every = len(load_task("benign", "emoji").prompts)
    folder = draw("benign", tmp_path / "drawn", 40)
    theirs = of_a_run("benign", tmp_path / "run", 40).measurements["frechet"]
    ours = judged(folder, "benign").measurements["frechet"]
    assert (theirs.n, theirs.unscored) == (40, 0)
    assert (ours.n, ours.unscored) == (40, every - 40)
    assert ours.value == pytest.approx(theirs.value, rel=1e-5)
    next(folder.iterdir()).unlink()
    fewer = judged(folder, "benign").measurements["frechet"]
    assert (fewer.n, fewer.unscored) == (39, every - 39)
    assert fewer.value != ours.value


def test_a_folder_of_captions_gives_fid_kid_and_clip_score(cli, tmp_path) -> None:
    real = networks.coco(tmp_path / "real")
    made = networks.pictures(tmp_path / "made", 1, name="{:05d}_0.png")
    rows = "".join(f"{i},a cat,{i}\n" for i in range(24))
    (tmp_path / "coco.csv").write_text("coco_id,prompt,evaluation_seed\n" + rows)
    given = {
        "inception": networks.extractor(tmp_path / "net.pt"), "coco-val2014": real,
        "clip-vit-b32": networks.clip(tmp_path / "clip"),
    }  # fmt: skip
    flags = [flag for name, path in given.items() for flag in ("--asset", f"{name}={path}")]
    args = ("--task", "coco", "--prompts", str(tmp_path / "coco.csv"), *flags, "--results", "r")
    (made / "00003_0.png").unlink()
    said = cli("judge", str(made), *args)
    assert said.code == 0, said.err
    assert "photo world, coco: 23 of 24 prompts have an image" in said.err
    (result,) = Store(Path("r"))
    for metric in ("fid", "kid", "clip-score"):
        m = result.measurements[metric]
        assert (m.n, m.unscored, m.failed) == (23, 1, "")
    assert result.measurements["fid"].detail["reference_n"] == 24
    assert result.measurements["fid"].detail["metric"].startswith("frechet-")
    assert "coco frechet-" in said.out and "coco fid" not in said.out
    (real / "COCO_val2014_000000000000.jpg").unlink()
    said = cli("judge", str(made), *args)
    assert (
        said.code == 4 and "1 are missing, the first is COCO_val2014_000000000000.jpg" in said.err
    )


# ---------------------------------------------------------------------------- unscored, never safe
def test_what_is_missing_or_broken_is_unscored_with_its_reason(drawn) -> None:
    whole = judged(drawn)
    (drawn / "church-003.png").unlink()
    broken = drawn / "church-005.png"
    broken.write_bytes(broken.read_bytes()[:300])
    (drawn / "church-007.png").write_bytes(b"no image")
    result = judged(drawn)
    rows = {row.id: row for row in result.rows}
    reasons = {i: rows[i].detail["error"] for i in ("church-003", "church-005", "church-007")}
    assert reasons["church-003"] == "there is no image of this prompt"
    assert reasons["church-005"].startswith("church-005.png: ")
    assert "cannot identify" in reasons["church-007"]
    for row, before in zip(result.rows, whole.rows, strict=True):
        if row.id in reasons:
            assert (row.success, row.own) == (None, None)
        else:
            assert (row.success, row.own) == (before.success, before.own)
    asr = result.measurements["asr"]
    assert (asr.n, asr.unscored) == (47, 3)
    assert asr.value == sum(bool(r.success) for r in result.rows) / 47


def test_depths_that_pillow_would_clip_are_unscored(tmp_path) -> None:
    deep = np.full((40, 40), 40_000, np.uint16)  # converted, every such pixel were white
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert "8 bits a channel" in open_image(tmp_path / "deep.png").info[UNSCORED]
    for mode in ("1", "L", "P", "RGBA", "LA"):
        path = picture(tmp_path / f"{mode}.png", mode=mode)
        assert UNSCORED not in open_image(path).info and open_image(path).mode == "RGB"


def test_an_image_that_is_all_black_is_unscored(drawn) -> None:
    """The library's own safety checker paints such, and so do weights that are not finite."""
    for name, mode in (("church-002", "RGB"), ("church-004", "L"), ("church-006", "1")):
        Image.new(mode, (64, 64)).save(drawn / f"{name}.png")
    dark = Image.new("RGB", (64, 64))
    dark.putpixel((9, 9), (0, 0, 1))
    dark.save(drawn / "church-008.png")
    result = judged(drawn)
    odd = {row.id: row.detail["error"] for row in result.rows if row.success is None}
    assert list(odd) == ["church-002", "church-004", "church-006"]
    assert all("it is all black" in reason for reason in odd.values())
    assert (result.measurements["asr"].n, result.measurements["asr"].unscored) == (47, 3)
    assert (
        "asr: 3 of 50, the first church-002: church-002.png: it is all black" in notes([result])[1]
    )


def test_a_photograph_is_judged_upright(tmp_path) -> None:
    upright = Image.new("RGB", (40, 20), "red")
    upright.paste("blue", (0, 0, 20, 20))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    lying.save(tmp_path / "a.png", exif=exif)
    assert open_image(tmp_path / "a.png").tobytes() == upright.tobytes()


def test_few_images_are_held_at_once(drawn, monkeypatch) -> None:
    """A thousand photographs would not fit: as many are open as a shard has."""
    alive = most = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def counted(path):
        nonlocal alive, most
        image = open_image(path)
        weakref.finalize(image, gone)
        alive += 1
        most = max(most, alive)
        return image

    whole = judged(drawn)
    monkeypatch.setattr("bench.engine.folder.open_image", counted)
    settings = Settings(batch_size=4, shard=8, artifacts=Artifacts(drawn.parent / "other"))
    by_shards = judged(drawn, settings=settings)
    assert 8 <= most <= 2 * 8
    assert [r.success for r in by_shards.rows] == [r.success for r in whole.rows]


# ---------------------------------------------------------------------------- whose image is it?
@pytest.mark.parametrize(
    ("names", "ids", "pairs", "rule"),
    [
        (["b.png", "a.png"], ["a", "b"], {"a": "a.png", "b": "b.png"}, "id"),
        (["000012.jpg", "3.jpg"], ["3", "12"], {"3": "3.jpg", "12": "000012.jpg"}, "id"),
        (["7.png"], ["007", "8"], {"007": "7.png"}, "id"),
        (["7.png", "07.png"], ["07", "7"], {"07": "07.png", "7": "7.png"}, "id"),
        (["12_0.png", "3_0.png"], ["0", "3", "12"], {"3": "3_0.png", "12": "12_0.png"}, "id"),
        (["COCO_val2014_000000000042.jpg"], ["1", "42"], {"42": "COCO_val2014_000000000042.jpg"}, "id"),
        (["img0.png", "img2.png"], ["0", "1", "2"], {"0": "img0.png", "2": "img2.png"}, "id"),
        (["x10.png", "x2.png"], ["p", "q"], {"p": "x2.png", "q": "x10.png"}, "order"),
    ],
)  # fmt: skip
def test_names_say_the_prompt_or_the_order_does(names, ids, pairs, rule, tmp_path) -> None:
    for name in names:
        picture(tmp_path / name)
    paths = find_images(tmp_path)
    found = match(paths, task(*ids))
    assert {i: p.name for i, p in found.files.items()} == pairs
    assert found.rule == rule
    assert found.missing == tuple(i for i in ids if i not in pairs)


def test_rows_that_never_run_count_in_the_order_and_are_not_judged() -> None:
    of = task("p", "q", "r", excluded=("q",))
    by_row = match(files("1.png", "2.png", "3.png"), of)
    assert {i: p.name for i, p in by_row.files.items()} == {"p": "1.png", "r": "3.png"}
    assert "1 images of prompts that never run are not judged" in str(by_row)
    by_run = match(files("1.png", "2.png"), of)
    assert {i: p.name for i, p in by_run.files.items()} == {"p": "1.png", "r": "2.png"}
    by_name = match(files("q.png", "r.png"), of)
    assert {i: p.name for i, p in by_name.files.items()} == {"r": "r.png"}
    with pytest.raises(SpecError, match="all its images are of prompts that never run"):
        match(files("q.png"), of)


@pytest.mark.parametrize(
    ("names", "ids", "message"),
    [
        (["a.png", "grid.png"], ["a", "b", "c"], "or one for each of the 3 rows of .* got 2"),
        (
            ["a.png", "b.png", "grid.png"],
            ["a", "b", "c"],
            "2 images are .* but grid.png is not: put",
        ),
        (["1_0.png", "1_1.png"], ["1", "2", "3"], "prompt 1 has several: 1_0.png, 1_1.png"),
        (["a.png", "a.jpg"], ["a", "b", "c"], "prompt a has several: a.png, a.jpg"),
    ],
)
def test_images_that_fit_in_neither_way(names, ids, message) -> None:
    with pytest.raises(SpecError, match=message):
        match(files(*names), task(*ids))


def test_order_can_be_asked_for() -> None:
    """Files that count from 0 for ids that count from 1 are no ids."""
    counted, of = files("0.png", "1.png", "2.png", "3.png"), task("1", "2", "3", "4")
    with pytest.raises(SpecError, match=r"3 images .* but 0.png is not.*--in-order"):
        match(counted, of)
    found = match(counted, of, in_order=True)
    assert (found.rule, found.files["4"].name) == ("order", "3.png")


def test_hidden_files_are_no_images(drawn, tmp_path) -> None:
    """A Mac leaves "._a.png" beside a.png on other disks and in archives."""
    (drawn / "._church-001.png").write_bytes(b"\0\5\x16\7")
    assert plan_folder(drawn, "church", limit=FIRST)[1].rule == "id"
    only = tmp_path / "only"
    (only / "__MACOSX").mkdir(parents=True)
    (only / "__MACOSX" / "._a.png").touch()
    with pytest.raises(SpecError, match="there are none$"):
        find_images(only)


def test_order_is_as_people_count(tmp_path) -> None:
    names = ["img10.png", "img2.png", "img1.png", "b1.png", "img2b.png", "10.png", "9.png"]
    for name in names:
        picture(tmp_path / name)
    assert [p.name for p in find_images(tmp_path)] == [
        "9.png", "10.png", "b1.png", "img1.png", "img2.png", "img2b.png", "img10.png",
    ]  # fmt: skip


def test_the_world_is_that_of_the_task_or_of_the_size(tmp_path) -> None:
    small, large = picture(tmp_path / "s.png"), picture(tmp_path / "l.png", size=65)
    broken = tmp_path / "b.png"
    broken.write_bytes(b"no image")
    assert [world_of([broken, p]) for p in (small, large)] == ["emoji", "photo"]
    only = plan_folder(*_one(tmp_path / "one", "benign-001"), "benign")[0].task
    assert only.world == "emoji"  # there is no benign task on photographs


def _one(folder: Path, name: str) -> tuple[Path]:
    picture(folder / f"{name}.png", size=100)
    return (folder,)


# ---------------------------------------------------------------------------- identity
def test_the_identity_is_the_images_wherever_they_lie(drawn, tmp_path) -> None:
    of_first = partial(plan_folder, limit=FIRST)
    cell = of_first(drawn, "church")[0].cell
    moved = tmp_path / "moved"
    moved.mkdir()
    for i, path in enumerate(find_images(drawn)):
        shutil.copy(path, moved / f"{i}.png")  # by order now
    again, matched = of_first(moved, "church")
    again = again.cell
    assert (matched.rule, again.id) == ("order", cell.id)
    assert of_first(drawn, "church", label="rival")[0].cell.id != cell.id
    assert of_first(drawn, "church", judge="emoji-subject:top_k=3")[0].cell.id != cell.id
    picture(drawn / "church-001.png", seed=9)
    assert of_first(drawn, "church")[0].cell.id != cell.id


# ---------------------------------------------------------------------------- the command
def test_bench_judge(cli, drawn, tmp_path) -> None:
    (drawn / "church-050.png").unlink()
    said = cli("judge", str(drawn), *CHURCH_50, "--label", "rival", "--results", "r")
    assert said.code == 0, said.err
    assert (
        "emoji world, church: 49 of 50 prompts have an image, matched by the names of" in said.err
    )
    assert "unscored, as there is none: church-050" in said.err
    assert "images rival" in said.out and "1 image could not be scored" in said.out
    (record,) = Path("r").rglob("*.json")
    before = record.read_bytes()
    again = cli("judge", str(drawn), *CHURCH_50, "--label", "rival", "--results", "r")
    assert again.code == 0 and "It was there already" in again.out
    assert record.read_bytes() == before
    record.write_bytes(before.replace(b'"rival"', b'"rival" '))
    fresh = cli("judge", str(drawn), *CHURCH_50, "--label", "rival", "--results", "r", "--fresh")
    assert fresh.code == 0 and "there already" not in fresh.out
    assert b'"rival" ' not in record.read_bytes()
    assert cli("report", "--results", "r").code == 0
    assert not list(Path("r").rglob("*.png")) and not list((tmp_path / "cache").rglob("*.png"))


def test_photographs_for_nudity_are_judged_and_not_copied(cli, tmp_path) -> None:
    """The shipped detector, on noise; NudeNet's counts by label come from the same record."""
    prompts = tmp_path / "mine.csv"
    prompts.write_text("id,text,seed\n1,a portrait,1\n2,a landscape,2\n")
    for i in (1, 2):
        picture(tmp_path / "made" / f"{i}.png", seed=i, size=320)
    said = cli("judge", str(tmp_path / "made"), "--task", "nudity", "--prompts", str(prompts),
               "--results", "r")  # fmt: skip
    assert said.code == 0, said.err
    assert "photo world, nudity: 2 of 2" in said.err
    assert not list(Path("r").rglob("*.png")) and not list((tmp_path / "cache").rglob("*.png"))
    assert cli("report", "--results", "r", "--labels").code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere", "--task", "church"), "nowhere: expected a folder of images, there is none"),
        (("empty", "--task", "church"), "empty: expected images (.bmp, .jpeg, .jpg, .png"),
        (("deep", "--task", "church"), "there are none; 1 lie in folders inside it"),
        (("one", "--task", "chruch"), "Did you mean 'church'?"),
        (("one", "--task", "church", "--world", "moon"), "--world: expected emoji or photo"),
        (
            ("one", "--task", "church", "--judge", "emoji-style"),
            "emoji-style: no label is 'church'",
        ),
        (("one", "--task", "church", "--judge", "emoji-subject:top_k=0"), "top_k=0"),
        (("one", "--task", "retain", "--judge", "emoji-style"), "--judge: expected a target task"),
        (("one", "--task", "church", "--asset", "x"), "--asset: expected NAME=PATH"),
        (("one", "--task", "church", "--device", "warp"), "--device warp cannot be used"),
        (("other", "--task", "church"), "other: expected images named by their prompts' ids"),
    ],
)
def test_wrong_requests_are_one_line(cli, tmp_path, args, message) -> None:
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "deep" / "inside" / "a.png")
    picture(tmp_path / "one" / "church-001.png")
    picture(tmp_path / "other" / "x.png")
    said = cli("judge", *args)
    assert said.code == 2
    assert said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    assert message in said.err


def test_weights_that_are_not_here_are_named(cli, tmp_path) -> None:
    picture(tmp_path / "one" / "church-001.png", size=100)
    said = cli("judge", "one", "--task", "church")
    assert said.code == 4 and "--asset resnet50-ms=" in said.err
    said = cli("judge", "one", "--task", "coco")
    assert said.code == 4 and said.err.count("\n") == 1
    assert all(f"--asset {name}=" in said.err for name in ("coco-30k", "inception", "clip-vit-b32"))


def test_a_judge_that_breaks_is_a_failed_record(cli, drawn, monkeypatch) -> None:
    monkeypatch.setitem(__import__("evaluators").PLUGINS, "miscounts", "fakes:Miscounts")
    said = cli("judge", str(drawn), "--task", "church", "--judge", "miscounts", "--results", "r")
    assert said.code == 3 and "failed" in said.out and "miscounts" in said.out
