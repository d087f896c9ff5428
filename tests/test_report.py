from dataclasses import replace

from PIL import Image

from bench import Concept, Prompt, Sample
from bench.metrics import Measurement, rate
from bench.plan import Cell
from bench.registry import Ref
from bench.report.frame import Table
from bench.report.pictures import save_grid
from bench.report.render import figure, markdown
from bench.report.tables import cer_table, cer_tables
from bench.store import Result, Row


def result(attack: str, successes: list[bool | None], *, method="esd", task="church") -> Result:
    cell = Cell(
        "emoji", "emoji-sd", "r", "fp32", Ref(method), Concept("church", "object"), task, "d",
        len(successes), Ref(attack), 0,
    )  # fmt: skip
    rows = tuple(
        Row(
            str(i), "text", i, 5.0, success, own=float(bool(success)), attacked=float(bool(success))
        )
        for i, success in enumerate(successes)
    )
    return Result(cell, "ok", {"asr": rate(successes)}, rows, seconds={"attack": 3.0})


def shown(table: Table) -> list[tuple[str, ...]]:
    """Return a table's lines as a person reads them."""
    return [(*line.names, *map(figure, line.figures)) for line in table.lines]


def heads(table: Table) -> tuple[str, ...]:
    return (*table.names, *table.columns)


def test_cer_is_one_minus_asr_with_its_interval() -> None:
    table = cer_table([result("none", [True] + [False] * 9)])
    assert heads(table) == ("task", "method", "CER, no attack", "s")
    assert shown(table) == [("church", "esd", "0.90 [.60-.98]", "3")]
    assert "N=10" in table.legend


def test_a_star_only_where_paired_outcomes_differ() -> None:
    plain = result("none", [False] * 20)
    weak = result("unlearndiff", [True] * 3 + [False] * 17)
    strong = result("unlearndiff", [True] * 8 + [False] * 12)
    assert shown(cer_table([plain, weak]))[0][3] == "0.85 [.64-.95]"
    assert shown(cer_table([plain, strong]))[0][3] == "0.60 [.39-.78]*"


def test_retained_accuracy_stands_beside_its_own_model() -> None:
    target = result("none", [False] * 4)
    kept = replace(
        result("none", [True, True, False, False], task="retain"),
        measurements={"accuracy": rate([True, True, False, False])},
    )
    other = replace(kept, cell=replace(kept.cell, method=Ref("p-esd")))
    table = cer_table([target, kept, other])
    assert heads(table)[3] == "retain accuracy"
    assert shown(table)[0][3].startswith("0.50 [")


def test_set_measures_state_their_n_and_never_share_a_column_with_another() -> None:
    target = result("none", [False] * 4)
    other = result("none", [False] * 4, task="coco")
    few, many = (
        replace(
            other,
            measurements={"fid": Measurement(value, n), "kid": Measurement(value / 1e4, n)},
            rows=(),
        )
        for value, n in ((31.25, 29_999), (16.125, 30_000))
    )
    table = cer_table([target, few, many])
    assert heads(table)[3:7] == tuple(
        f"coco {metric} (N={n})" for n in (29999, 30000) for metric in ("fid", "kid")
    )
    assert shown(table)[0][3:7] == ("31.25", "0.003125", "16.12", "0.001613")
    assert "30k" not in markdown(table)


def test_narrow_intervals_and_large_means_keep_their_digits() -> None:
    target = result("none", [False] * 4)
    measured = {
        "a": Measurement(0.3104, 30_000, 0, 0.3101, 0.3107),
        "b": Measurement(30.5, 20, 0, 30.25, 30.75),
    }
    kept = replace(result("none", [False], task="coco"), measurements=measured)
    assert shown(cer_table([target, kept]))[0][3:5] == (
        "0.3104 [.3101-.3107]",
        "30.50 [30.25-30.75]",
    )


def test_failures_and_unscored_images_are_shown() -> None:
    failed = Result(result("none", [False]).cell, "failed", reason="no luck")
    assert shown(cer_table([failed]))[0][2] == "failed"
    assert cer_table([failed]).notes == ("failed: church, esd, attack none: no luck",)
    said = " ".join(cer_table([result("none", [None, False])]).notes)
    assert "1 images could not be scored" in said
    nothing = cer_table([result("none", [None, None])])
    assert shown(nothing)[0][2] == "n/a (0 of 2 scored)"


def test_the_base_comes_first() -> None:
    rows = shown(cer_table([result("none", [False], method=m) for m in ("esd", "none", "ac")]))
    assert [row[1] for row in rows] == ["none", "ac", "esd"]


def test_grid_frames_what_the_judge_saw(tmp_path) -> None:
    record = result("unlearndiff", [True, False])
    triples = [
        tuple(Sample(Prompt(str(i), "x", i), Image.new("RGB", (32, 32), "blue")) for _ in range(3))
        for i in range(2)
    ]
    save_grid(tmp_path / "grid.png", record, triples)
    picture = Image.open(tmp_path / "grid.png")
    assert picture.size == (520, 20 + 3 * 100)  # two columns of 100 would cut the title
    reds = [
        picture.getpixel((84 + 100 * c, 20 + 100 * r)) == (255, 0, 0)
        for r in range(3)
        for c in range(2)
    ]
    assert reds == [False, False, True, False, True, False]


def test_photo_nudity_is_blurred(tmp_path) -> None:
    record = result("none", [False])
    sharp = Image.new("RGB", (32, 32), "black")
    sharp.paste("white", (16, 0, 32, 32))
    triple = [tuple(Sample(Prompt("0", "x", 0), sharp) for _ in range(3))]

    def greys(world: str, kind: str) -> int:
        cell = replace(record.cell, world=world, concept=Concept("nudity", kind))
        save_grid(tmp_path / "g.png", replace(record, cell=cell), triple)
        tile = Image.open(tmp_path / "g.png").crop((90, 30, 170, 110)).convert("L")
        return len(tile.getcolors())

    assert greys("photo", "nsfw") > 10
    assert greys("emoji", "nsfw") == greys("photo", "object") == 2


def test_attacks_beyond_the_prompt_and_other_judges_have_tables_of_their_own() -> None:
    plain = result("none", [False] * 4)
    prompt = result("unlearndiff", [True] * 2 + [False] * 2)
    beyond = replace(result("cce", [True] * 4), space="embedding")
    first, second = cer_tables([plain, prompt, beyond])
    assert heads(first)[2:4] == ("CER, no attack", "CER, unlearndiff")
    assert heads(second)[2:4] == ("CER, no attack", "CER, cce")
    assert "beyond the prompt" in second.title
    (only,) = cer_tables([plain, beyond])
    assert "beyond the prompt" in only.title
    other = replace(plain, measurements={"asr-clip": rate([True] * 4)})
    tables = cer_tables([plain, other])
    assert [shown(t)[0][2][:4] for t in tables] == ["1.00", "0.00"]
    assert "asr-clip" in tables[1].title
