"""One cell: its story, the command that computes it again, its pictures."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from test_figures import cell, row, target

from bench import Cost, Prompt, SamplerNoise
from bench.engine.again import Again
from bench.engine.examples import examples, picks, tiles_of
from bench.engine.figures import drawn_cell
from bench.engine.settings import Settings
from bench.errors import SpecError
from bench.models import load_model
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref, written_out
from bench.report.command import command, remarks
from bench.report.figures.examples import Card, Section, Tile, draw
from bench.report.figures.select import Wanted
from bench.report.hidden import hidden
from bench.report.story import of_id, story
from bench.report.text import plain
from bench.report.words import marked
from bench.store.record import Record
from bench.store.store import Store
from bench.tasks.tasks import load_task

REFERENCE = Path(__file__).parents[1] / "results" / "reference"
TINY = ("run", "--model", "tiny-random", "--limit", "2", "--method", "none", "--task", "church")


@pytest.mark.parametrize(
    ("before", "after", "written"),
    [
        ("a church", "lo we a church", ["lo", "we"]),
        ("a church", "a church", []),
        ("a red church", "a blue church now", ["blue", "now"]),
        ("a church a church", "a church", []),
        ("", "x y", ["x", "y"]),
        ("x", "", []),
    ],
)
def test_words_that_an_attack_wrote_are_marked(before, after, written) -> None:
    words = marked(before, after)
    assert [w for w, _ in words] == after.split()
    assert [w for w, mark in words if mark] == written


def planned(line: str) -> list[str]:
    """Return the ids of the cells that a command of ours asks for."""
    words = shlex.split(line)
    assert words[:2] == ["bench", "run"]
    options = list(zip(words[2::2], words[3::2], strict=True))

    def of(name: str) -> list[str]:
        return [value for option, value in options if option == f"--{name}"]

    (limit,), (seed,) = of("limit"), of("seed") or ["0"]
    methods, attacks = (tuple(map(Ref.parse, of(axis))) for axis in ("method", "attack"))
    spec = Spec("emoji-sd", methods, attacks, tuple(of("task")), int(seed), int(limit),
                erase=tuple(of("erase")))  # fmt: skip
    return [job.cell.id for job in plan(spec).jobs]


def test_the_command_leads_to_the_same_cell_and_to_no_other() -> None:
    records, _ = Store(REFERENCE).load()
    for name in ("church", "retain"):
        some = [r for r in records if r.cell.task == name and r.cell.concept.name == "church"]
        assert some
        for record in some:
            *before, last = planned(command(record))
            assert last == record.cell.id
            assert len(before) == (record.cell.attack.name == "transfer")  # whose texts it takes
    other = replace(some[0].cell, method=replace(some[0].cell.method, params={
        **some[0].cell.method.params, "lr": 0.5}), seed=3)  # fmt: skip
    if other.method.name == "none":
        pytest.skip("no parameters")
    assert "lr=0.5" in command(Record(other, "ok"))
    assert other.id in planned(command(Record(other, "ok")))


def told(record: Record) -> str:
    return "\n".join(f"{line.name}|{line.text}" for line in story(record))


def test_the_story_of_a_cell() -> None:
    record = next(
        r for r in Store(REFERENCE).load()[0]
        if (r.cell.task, r.cell.method.name, r.cell.attack.name) == ("church", "esd", "unlearndiff")
    )  # fmt: skip
    text, n = told(record), len(record.rows)
    back = [r for r in record.rows if r.success]
    low, high = binomtest(n - len(back), n).proportion_ci(method="wilson")
    interval = f"[{low:.2f}-{high:.2f}]".replace("0.", ".")
    assert f"CER|{1 - len(back) / n:.2f} {interval} (1 - ASR, 95 % Wilson interval), N={n}" in text
    spent = sum((r.cost for r in record.rows), Cost())
    assert f"cost|{spent.images:,} images, {spent.forward:,} forward" in text
    own = sum(bool(r.own) for r in record.rows)
    assert (
        f"{own} show the concept without an attack, {len(back) - own} more with it, "
        f"{n - len(back)} in neither" in text
    )
    found = next(r for r in back if not r.own)
    images = f"{found.cost.images} image{'s' * (found.cost.images != 1)}"
    assert f"{found.id}|own image: not seen; attacked: SEEN, after {images}" in text
    assert text.endswith(f"again|{command(record)}")
    assert "judge|emoji-subject:top_k=1" in text and f"git {record.environment['git'][:7]}" in text


def test_a_cell_is_named_by_the_beginning_of_its_id() -> None:
    records = [target([row(0, True)], method=m) for m in ("esd", "uce")]
    assert of_id(records, records[1].cell.id[:9]) is records[1]
    with pytest.raises(SpecError, match=r"expected the id of a cell, got '': none of the 2"):
        of_id(records, "")
    many = [target([row(0, True)], method=f"m{i}") for i in range(40)]
    with pytest.raises(SpecError, match=r"cells begin with '.': give more of it: .*church, m"):
        of_id(many, many[0].cell.id[0])


def test_pictures_are_half_of_what_came_back() -> None:
    record = target([row(i, i in {3, 7, 8, 9}) for i in range(10)])
    assert [r.id for r in picks(record, 4)] == ["0", "1", "3", "7"]
    assert [r.id for r in picks(record, 9)] == list("012345789")
    assert len(picks(record, 99)) == 10
    never_erased = target([row(i, True, own=float(i < 4)) for i in range(6)])
    assert [r.id for r in picks(never_erased, 2)] == [
        "0",
        "4",
    ]  # one that came back, one of the others


class Pictures:
    """Stands for images: which model drew them, and what of."""

    def original_images(self, record, rows):
        return [f"original {row.id}" for row in rows]

    def own_images(self, record, rows):
        return [f"{record.cell.method.name} {row.id}" for row in rows]

    def attacked_images(self, record, rows):
        return [f"{record.cell.method.name} attacked {row.id}" for row in rows]


def test_beside_an_erased_model_stands_one_that_never_learned() -> None:
    erased = target([row(0, True, attacked=1.0), row(1, False)])
    never = target([row(0, True, own=0.0), row(1, True, own=1.0)], method="never-learned")
    base = target([row(0, True, own=1.0), row(1, True, own=1.0)], "none", method="none")

    def shown(*records) -> list[dict[str, tuple[str, str]]]:
        lines = tiles_of(Pictures(), erased, erased.rows, records)
        return [{tile.name: (tile.image, tile.verdict) for tile in line} for line in lines]

    first, second = shown(base, erased, never)
    assert first == {
        "original": ("original 0", "seen"),
        "erased": ("esd 0", "not seen"),
        "attacked": ("esd attacked 0", "seen"),
        "never learned": ("never-learned 0", "not seen"),  # its own image, whatever the attack did
    }
    assert second["never learned"] == ("never-learned 1", "seen")
    plain = target([row(0, True, own=1.0), row(1, False)], "none", method="never-learned")
    assert shown(never, plain)[0]["never learned"][1] == "seen"  # without an attack comes first
    other = target(list(never.rows), "p4d", method="never-learned")
    assert "never learned" not in shown(other, replace(never, status="failed"))[0]


def test_models_to_measure_by_have_pictures_only_where_they_are_asked_for() -> None:
    records = [target([row(0, True)], method=m) for m in ("none", "never-learned")]
    with pytest.raises(SpecError, match="expected records of attacks on an erased model"):
        examples(records, Wanted(), Settings())
    with pytest.raises(SpecError, match="cell .*: emoji-sd is at"):  # it goes on to draw
        examples(records, Wanted(methods=("never-learned",)), Settings())


def test_what_is_hidden() -> None:
    record = target([row(0, True)])
    assert not hidden(record)  # the emoji world's stand-in is harmless
    photo = replace(record, cell=replace(record.cell, world="photo", task="mine"))
    assert hidden(photo)  # nobody knows what it judges
    assert not hidden(replace(photo, protocol={"judge": "imagenet:top_k=1"}))
    assert hidden(replace(photo, protocol={"judge": "nudenet:profile=mace"}))


def test_the_story_is_shown_and_drawn_again(cli, few_steps, monkeypatch) -> None:
    assert cli(*TINY, "--attack", "none", "--attack", "random").code == 0
    record = next(r for r in Store(Path("results/local")) if r.cell.attacked)
    said = cli("show", record.cell.id[:10], "--out", "cell.png")
    assert said.code == 0
    assert f"cell         {record.cell.id}: church, none, attack random" in said.out
    assert plain(record.rows[0].adversarial) in said.out
    assert Path("cell.png").read_bytes()[:4] == b"\x89PNG"
    model = load_model("tiny-random")
    noisy = replace(record.rows[0], beyond="noise", adversarial_noise=SamplerNoise(1.0))
    beyond = replace(record.rows[0], beyond="embedding")
    (image, other, third) = Again(Settings()).attacked_images(
        record, [record.rows[1], replace(noisy, id="noisy"), replace(beyond, id="beyond")]
    )
    r = record.rows[1]
    prompt = Prompt(r.id, r.adversarial, r.adversarial_seed, r.guidance)
    (expected,) = model.generate([prompt])
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 1
    assert not np.array_equal(np.asarray(other), np.asarray(image))
    assert third is None  # an embedding is in the cache only
    # ------------------------------------------------ the figure, its numbers, and what it refuses
    said = cli("figure", "examples", "--out", "a.svg", "--data", "a.csv")
    assert said.code == 2 and "expected records of attacks on an erased model" in said.err
    older = replace(record, cell=replace(record.cell, revision="0000"))
    with pytest.raises(SpecError, match="tiny-random is at .*, its record is of 0000"):
        Again(Settings()).erased(older)
    method = replace(record.cell.method, version=9)
    with pytest.raises(SpecError, match="method none is not the one of its record"):
        Again(Settings()).erased(replace(record, cell=replace(record.cell, method=method)))


def test_cards_show_verdicts_and_marked_words(tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    red = Image.new("RGB", (32, 32), "red")
    tiles = (
        Tile("original", red, "seen"),
        Tile("erased", red, "not seen"),
        Tile("attacked", None, "unscored"),
    )
    words = marked("a church", "$x$ \x1b[31m " + "w" * 300 + " a church")
    drawing = draw(
        [Section("t", (Card(tiles, words, "a note"),) * 3)], "title", "the judge sees church"
    )
    texts = [t.get_text() for t in drawing.figure.texts]
    assert {"original ●", "erased ○", "attacked ?"} <= set(texts)
    bold = [t.get_text() for t in drawing.figure.texts if t.get_weight() == "bold"]
    assert bold[0] == "title" and bold[1].startswith(r"$x$ \x1b[31m")
    assert "a note" in texts and any("written by the attack" in t for t in texts)
    for name in ("a.png", "a.svg", "a.pdf"):
        drawing.save(tmp_path / name)
    renderer = FigureCanvasAgg(drawing.figure).get_renderer()
    right = drawing.figure.bbox.width
    assert all(t.get_window_extent(renderer).x1 <= right for t in drawing.figure.texts)


def test_hidden_pictures_are_blurred() -> None:
    from PIL import Image

    half = Image.new("RGB", (64, 64), "white")
    half.paste("black", (0, 0, 32, 64))
    for hide in (False, True):
        card = Card((Tile("original", half, "seen"),), [("x", False)])
        drawing = draw([Section("t", (card,), hide)], "title", "seen")
        (image,) = drawing.figure.axes[0].images
        edge = np.asarray(image.get_array())[110, 100:120, 0].astype(int)
        assert (max(abs(np.diff(edge))) < 10) == hide
        assert any("blurred" in t.get_text() for t in drawing.figure.texts) is hide


def test_a_cell_without_prompts_has_no_picture(cli, tmp_path: Path) -> None:
    record = Record(cell(), "failed", reason="PluginError: boom\x1b[2J")
    Store(tmp_path / "records").put(record)
    said = cli("show", record.cell.id, "--results", "records", "--out", "a.png")
    assert said.code == 2 and "nothing to draw" in said.err
    assert r"failed       PluginError: boom\x1b[2J" in said.out
    with pytest.raises(SpecError, match="nothing to draw"):
        drawn_cell(record, [], console=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("methods",), "expected a name as well, see `bench list methods`"),
        (("metods", "esd"), "unknown kind 'metods'. Did you mean 'methods'?"),
        (("abc", "--out", "a.gif"), "expected a name that ends in .png"),
        (("0f0f0",), "expected the id of a cell, got '0f0f0': none of the 1 records here"),
        (("methds",), "unknown kind 'methds'. Did you mean 'methods'?"),
    ],
)
def test_bad_input_is_one_line(cli, args, said: str, tmp_path: Path) -> None:
    Store(tmp_path / "records").put(target([row(0, True)]))
    got = cli("show", *args, "--results", "records")
    assert (got.code, got.out) == (2, "") and said in got.err and got.err.count("\n") == 1


@pytest.mark.parametrize(
    "more",
    [
        ("--guidance", "3"),
        ("--judge", "emoji-subject:top_k=2"),
        ("--judge", "emoji-body"),
        ("--guidance", "4.5", "--judge", "emoji-subject:top_k=2"),
    ],
)
def test_the_command_says_what_was_asked_for_besides_the_task(more, cli) -> None:
    """Its cell is the one that ``bench plan`` has for the same words."""
    words = ("--method", "uce", "--attack", "none", "--task", "church", "--limit", "2")

    def cells(*of: str) -> list[dict[str, Any]]:
        return json.loads(cli("plan", *of, "--json").out)["cells"]

    (cell,) = cells(*words, *more)
    (usual,) = cells(*words)
    assert cell["id"] != usual["id"]
    ref = [value for flag, value in zip(more[::2], more[1::2], strict=True) if flag == "--judge"]
    judge = written_out("evaluators", Ref.parse(ref[0] if ref else "emoji-subject"))
    guidance = {"guidance": more[1]} if more[0] == "--guidance" else {}
    task = load_task("church", "emoji", limit=2)
    (job,) = plan(Spec("emoji-sd", (Ref("uce"),), (Ref("none"),), ("church",), 0, 2))
    asked = replace(job.cell, task_digest=cell["task_digest"])
    record = Record(asked, "ok", protocol={"prompts": task.source, "judge": judge, **guidance})
    again = shlex.split(command(record))
    assert [c["id"] for c in cells(*again[2:])] == [cell["id"]]
    assert not remarks(record)
    assert remarks(replace(record, cell=replace(asked, task_digest="0" * 12)))


def test_a_prompt_list_of_ones_own_is_a_remark() -> None:
    (job,) = plan(Spec("emoji-sd", (Ref("uce"),), (Ref("none"),), ("church",), 0, 2))
    record = Record(
        job.cell, "ok", protocol={"prompts": "mine.csv:text 0123abcd (seeds: 0 + the row's number)"}
    )
    assert command(record).endswith("--prompts FILE.csv")
    assert remarks(record) == (
        f"FILE.csv stands for the user's own prompts, mine.csv:text (set {job.cell.task_digest})",
    )
