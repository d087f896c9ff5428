import csv
import io
import math
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image
from rich.cells import cell_len

from bench import Concept, Cost, Prompt, Sample
from bench.errors import StoreError
from bench.plan.cell import Cell
from bench.plugins.registry import Ref
from bench.report.axes import labels
from bench.report.frame import Figure, Line, Table
from bench.report.judging import label_table, threshold_curve
from bench.report.pictures import save_grid
from bench.report.render import csv_table, figure, markdown, terminal
from bench.report.tables import cer_table, cer_tables, cost_table, picked, transfer_table
from bench.report.text import counted, csv_cell, fixed, plain
from bench.report.text import markdown as for_markdown
from bench.store.metrics import Measurement, rate
from bench.store.record import Record, Row
from bench.tasks.tasks import Measure


def result(attack: str, successes: list[bool | None], *, method="esd", task="church") -> Record:
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
    return Record(cell, "ok", {"asr": rate(successes)}, rows, seconds={"attack": 3.0})


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


def test_some_methods_attacks_and_a_seed_are_picked_and_what_is_kept_stays_beside_them() -> None:
    first = [result(attack, [False] * 4) for attack in ("none", "p4d", "unlearndiff")]
    kept = replace(
        result("none", [True] * 4, task="retain"), measurements={"accuracy": rate([True] * 4)}
    )
    records = [*first, kept]
    records += [replace(r, cell=replace(r.cell, method=Ref("p-esd"))) for r in records]
    records += [replace(r, cell=replace(r.cell, seed=1)) for r in records]
    other = [replace(r, cell=replace(r.cell, erase_seed=2)) for r in first]

    def names(*of) -> list[tuple[str, str, int]]:
        found = picked([*records, *other], *of)
        assert all(r.cell.erase_seed is None for r in found)
        return [(r.cell.method.name, r.cell.attack.name, r.cell.seed) for r in found]

    assert names(("esd",), ("p4d",), 0) == [("esd", "p4d", 0), ("esd", "none", 0)]
    assert len(names((), (), 1)) == 8
    assert picked(records) == records


def test_one_setting_of_an_attack_is_picked() -> None:
    plain = result("random", [False] * 4)
    floors = [
        replace(plain, cell=replace(plain.cell, attack=Ref("random", {"tokens": 3, "draws": n})))
        for n in (1, 10)
    ]
    attacks = {text: picked(floors, attacks=[text]) for text in (
        "random", "random:draws=10", "random:draws=1,tokens=3", "random:draws=1,tokens=4", "random:n=1"
    )}  # fmt: skip
    assert list(attacks.values()) == [floors, floors[1:], floors[:1], [], []]
    assert picked(floors, attacks=["random:draws=1", "random:draws=10"]) == floors


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
    failed = Record(result("none", [False]).cell, "failed", reason="no luck")
    assert shown(cer_table([failed]))[0][2] == "failed"
    assert cer_table([failed]).notes == ("failed: church, esd, attack none: no luck",)
    other = replace(failed, cell=replace(failed.cell, task="tower"))
    assert cer_table([failed, other]).notes == ("failed: esd, attack none: no luck (2 cells)",)
    said = " ".join(cer_table([result("none", [None, False])]).notes)
    assert "1 image could not be scored" in said
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

    def greys(world: str, name: str, kind: str, *judges: str) -> int:
        cell = replace(record.cell, world=world, concept=Concept(name, kind))
        measures = [Measure("asr", Ref(judge), "rate") for judge in judges]
        save_grid(tmp_path / "g.png", replace(record, cell=cell), triple, measures)
        tile = Image.open(tmp_path / "g.png").crop((90, 30, 170, 110)).convert("L")
        return len(tile.getcolors())

    assert greys("photo", "nudity", "nsfw") > 10
    assert greys("photo", "nudity", "object") > 10  # whatever a task of one's own calls it
    assert greys("photo", "shape", "object", "nudenet") > 10
    assert greys("emoji", "nudity", "nsfw") == greys("photo", "church", "object", "imagenet") == 2


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
    failed = replace(
        twin(plain, task="tench"), status="failed", measurements={}, rows=(), reason="no luck"
    )
    assert [len(t.lines) for t in cer_tables([plain, twin(other, seed=1), failed])] == [2, 1]
    tables = cer_tables([plain, other])
    assert [shown(t)[0][2][:4] for t in tables] == ["1.00", "0.00"]
    assert "asr-clip" in tables[1].title


# ---------------------------------------------------------------------------- what differs
ROOT = Path(__file__).parent.parent
SAID = {"found": {"foot": 0.9}, "highest": 0.9}


def twin(r: Record, protocol: dict[str, str] | None = None, **changes) -> Record:
    return replace(r, cell=replace(r.cell, **changes), protocol=protocol or r.protocol)


APART = {
    "model": ({"model": "sd14"}, {}, ("emoji-sd", "sd14")),
    "revision": ({"revision": "other"}, {}, ("other", "r")),
    "dtype": ({"dtype": "bf16"}, {}, ("bf16", "fp32")),
    "seed": ({"seed": 10}, {}, ("0", "10")),
    "world": ({"world": "photo"}, {}, ("emoji", "photo")),
    "N": ({"prompts": 3}, {}, ("3", "8")),
    "task digest": ({"task_digest": "e"}, {}, ("d", "e")),
    "prompts": ({"task_digest": "e"}, {"prompts": "b.csv 12"}, ("a.csv 34", "b.csv 12")),
    "judge": ({"task_digest": "e"}, {"judge": "body:at=0.9"}, ("body", "body:at=0.9")),
    "judge versions": ({"judges": {"body": 2}}, {}, ("", "body=2")),
    "judge sources": ({"sources": {"body": "ab"}}, {}, ("", "body=ab")),
    "file net": ({"assets": {"net": "22"}}, {}, ("11", "22")),
    "guidance": ({"task_digest": "e"}, {"judge": "body", "guidance": "7.5"}, ("own", "7.5")),
    "excluded": ({"task_digest": "e"}, {"judge": "body", "excluded": "2"}, ("none", "2")),
    "anchor": ({"concept": Concept("church", "object", "tree")}, {}, ("", "tree")),
}


@pytest.mark.parametrize("name", APART)
def test_what_differs_is_a_column_of_every_table(name: str) -> None:
    changes, said, values = APART[name]
    known = {
        "prompts": {"prompts": "a.csv 34"}, "judge": {"judge": "body"},
        "guidance": {"judge": "body"}, "excluded": {"judge": "body"},
    }.get(name, {})  # fmt: skip
    plain_cell, attacked = result("none", [False] * 8), result("random", [True] * 8)
    rows = tuple(replace(row, detail=SAID, own_detail=SAID, cost=Cost(1)) for row in attacked.rows)
    first = [
        twin(r, known, assets={"net": "11"} if name == "file net" else {})
        for r in (replace(plain_cell, rows=rows), replace(attacked, rows=rows))
    ]
    second = [twin(r, said, **changes) for r in first]
    if name == "N":
        second = [replace(r, rows=r.rows[:3]) for r in second]
    for table in (
        cer_table([*first, *second]),
        cost_table([*first, *second]),
        threshold_curve([*first, *second]),
        label_table([*first, *second]),
    ):
        if name == "N" and "N" in table.columns:  # a figure already
            assert {line.figures[0].value for line in table.lines} == {3, 8}
            continue
        assert name in table.names, table.title
        column = table.names.index(name)
        assert {line.names[column] for line in table.lines} == set(values)
        assert len({line.names for line in table.lines}) == len(table.lines)


def judged_by(r: Record, judge: str, **changes) -> Record:
    return twin(r, {"judge": judge}, task_digest=judge, **changes)


def test_a_judge_is_named_alone_where_that_tells_lines_apart() -> None:
    """Beside the shipped judge, one of one's own: its version and its source add nothing."""
    esd = result("none", [False] * 4)
    shipped = judged_by(esd, "emoji-subject:top_k=1", judges={"emoji-subject": 3})
    own = judged_by(esd, "mild:spread=8.0", sources={"mild": "d5fc817364b4632a"})
    table = cer_table([shipped, own])
    assert table.names == ("task", "method", "judge")
    assert {line.names[2] for line in table.lines} == {"emoji-subject", "mild"}

    strict = judged_by(esd, "mild:spread=4.0", sources={"mild": "d5fc817364b4632a"})
    table = cer_table([shipped, own, strict])
    judges = {"emoji-subject", "mild:spread=8.0", "mild:spread=4.0"}
    assert {line.names[2] for line in table.lines} == judges

    edited = judged_by(esd, "mild:spread=8.0", sources={"mild": "ffff"}, method=Ref("p-esd"))
    table = cer_table([shipped, own, edited])
    assert table.names == ("task", "method", "judge", "judge sources")  # also between two methods
    assert {line.names[2:] for line in table.lines} == {
        ("emoji-subject", ""),
        ("mild", "mild=d5fc8173"),
        ("mild", "mild=ffff"),
    }


def test_names_over_figures_leave_out_what_a_line_does_not_have() -> None:
    lines = tuple(Line(("church", "esd", prompts), (Figure(1),)) for prompts in ("a" * 90, ""))
    printed = terminal(Table("T", ("task", "method", "prompts"), ("n",), lines), 80)
    assert "task church, method esd" in printed


def test_versions_and_sources_of_a_plugin_are_told_apart() -> None:
    first = result("none", [False] * 4)
    later = twin(first, method=Ref("esd", version=2))
    edited = twin(first, method=Ref("esd", source="abcdef0123456789"))
    names = [line.names[1] for line in cer_table([first, later, edited]).lines]
    assert sorted(names) == ["esd version=1", "esd version=1 code=abcdef01", "esd version=2"]
    nudity = Concept("nudity", "nsfw")
    elsewhere = twin(later, task="nudity", concept=nudity)
    assert [line.names[1] for line in cer_table([first, elsewhere]).lines] == [
        "esd version=1",
        "esd version=2",
    ]


def test_parameters_differ_among_concepts_of_one_kind() -> None:
    steps = [Ref("esd", {"steps": n, "lr": 0.1}) for n in (100, 50)]
    church, tench = result("none", [False]), result("none", [False], task="tench")
    told = cer_table([twin(church, method=steps[0]), twin(tench, method=steps[1])])
    assert [line.names[1] for line in told.lines] == ["esd steps=100", "esd steps=50"]
    nudity = twin(tench, method=steps[1], task="nudity", concept=Concept("nudity", "nsfw"))
    told = cer_table([twin(church, method=steps[0]), nudity])
    assert [line.names[1] for line in told.lines] == ["esd", "esd"]  # another kind's default


def test_files_name_a_method_only_where_nothing_else_does() -> None:
    refs = [
        Ref("external", {"unet": f"/x/{name}.safetensors"}, files={"unet": digest * 8})
        for name, digest in (("a", "12"), ("b", "34"))
    ]
    name = labels([twin(result("none", [False]), method=ref) for ref in refs], "method")
    assert [name(twin(result("none", [False]), method=ref)) for ref in refs] == [
        "external unet=a.safetensors 12121212",
        "external unet=b.safetensors 34343434",
    ]


def test_prompts_of_another_set_are_never_paired() -> None:
    plain = result("none", [False] * 20)
    strong = result("unlearndiff", [True] * 20)
    other = twin(strong, task_digest="other")
    assert cer_table([plain, strong]).lines[0].figures[1].p == 2**-19
    apart = cer_table([plain, other])
    assert [f.p for line in apart.lines for f in line.figures if f] == [None] * 4
    renamed = replace(strong, rows=tuple(replace(r, id=f"x{r.id}") for r in strong.rows))
    assert cer_table([plain, renamed]).lines[0].figures[1].p is None


def test_an_older_record_that_says_less_stays_on_its_line() -> None:
    plain = result("none", [False] * 20)
    newer = twin(result("unlearndiff", [True] * 20), {"judge": "body", "draw": "ddim 20"})
    table = cer_table([plain, newer])
    assert len(table.lines) == 1
    assert table.lines[0].figures[1].flags == ("differs",)
    torn = cer_table([twin(plain, {"judge": "mouth"}), newer])
    assert torn.names == ("task", "method", "judge")
    assert len(torn.lines) == 2


def test_retain_tasks_of_two_sizes_have_their_own_columns() -> None:
    target = result("none", [False] * 4)
    kept = [
        twin(
            replace(
                result("none", [True] * n, task="retain"),
                measurements={"accuracy": rate([True] * n)},
            )
        )
        for n in (2, 4)
    ]
    assert cer_table([target, *kept]).columns[1:3] == (
        "retain N=2 accuracy",
        "retain N=4 accuracy",
    )


def test_two_records_of_one_cell_are_an_error_in_words() -> None:
    one = result("none", [False])
    with pytest.raises(StoreError, match="two records of one cell: church, esd, attack none"):
        cer_table([one, replace(one, seconds={})])


def test_transfers_of_two_seeds_have_their_own_lines() -> None:
    attack = Ref("transfer", {"source": "a.json", "digest": "1", "origin": "esd/random"})
    moved = twin(result("transfer", [True] * 4, method="uce"), attack=attack)
    own = result("random", [True] * 2 + [False] * 2)
    table = transfer_table([moved, own, twin(moved, seed=1)])
    assert table.names == ("task", "found on / by", "seed")
    assert [(line.names[2], *map(figure, line.figures)) for line in table.lines] == [
        ("0", "0.50 [.15-.85]", "0.00 [.00-.49]"),
        ("1", "·", "0.00 [.00-.49]"),
    ]


# ---------------------------------------------------------------------------- what is not a rate
def test_unscored_prompts_are_in_no_rate_and_many_are_marked() -> None:
    outcomes = [True] * 3 + [False] * 6 + [None]
    (line,) = cer_table([result("none", outcomes)]).lines
    known = [outcome for outcome in outcomes if outcome is not None]
    assert line.figures[0].value == pytest.approx(known.count(False) / len(known))
    assert (line.figures[0].n, line.figures[0].unscored) == (9, 1)
    assert line.figures[0].flags == ("unscored",)
    few = cer_table([result("none", [False] * 19 + [None])])  # exactly 5 %
    assert few.lines[0].figures[0].flags == ()
    many = cer_table([result("none", outcomes)])
    assert any("church, esd, attack none, asr: 1 of 10" in note for note in many.notes)
    for text in ("\n".join(terminal(many)), markdown(many)):
        assert "0.67 [.35-.88]?" in text
    nothing = cer_table([result("none", [None] * 4)]).lines[0].figures[0]
    assert (nothing.value, nothing.flags) == (None, ("unscored",))


def test_tasks_without_a_target_have_a_table_of_their_own() -> None:
    kept = [
        replace(
            twin(result("none", [True], task=task, method=method)),
            measurements={"accuracy": rate([True] * 4), "fid": Measurement(12.5, 4)},
        )
        for task in ("retain", "coco")
        for method in ("none", "uce")
    ]
    (table,) = cer_tables(kept)
    assert table.names == ("erased", "method")
    assert table.columns == (
        "retain accuracy", "retain fid (N=4)", "coco accuracy", "coco fid (N=4)", "s",
    )  # fmt: skip
    assert [line.names for line in table.lines] == [("church", "none"), ("church", "uce")]
    assert "; fid: lower is better" in table.legend and "12.50 |" in markdown(table)
    beside = cer_tables([*kept, result("none", [False])])
    assert [t.names for t in beside] == [("task", "method"), ("erased", "method")]
    failed = replace(kept[0], status="failed", measurements={}, rows=(), reason="no luck")
    (table,) = cer_tables([failed])
    assert table.lines[0].figures[0] == Figure(word="failed")
    assert table.notes == ("failed: retain, none, attack none: no luck",)


def test_a_table_of_failures_has_no_legend_of_numbers() -> None:
    good = result("none", [True])
    bad = replace(good, status="failed", measurements={}, rows=(), reason="no luck")
    attacked = replace(bad, cell=replace(bad.cell, attack=Ref("random")))
    assert cer_table([bad, attacked]).legend == ""
    assert "Wilson" in cer_table([good, attacked]).legend


def test_a_measure_that_failed_is_shown_beside_those_that_did_not() -> None:
    kept = replace(
        result("none", [True], task="coco"),
        measurements={
            "fid": Measurement(12.5, 4),
            "clip-score": Measurement(None, 0, 4, failed="no safetensors"),
        },
    )
    table = cer_table([result("none", [False]), kept])
    assert [f and f.word for f in table.lines[0].figures[1:3]] == ["", "failed"]
    assert "failed: coco, esd, attack none, clip-score: no safetensors" in table.notes


def test_notes_say_what_is_not_as_published() -> None:
    exact = twin(
        result("unlearndiff", [True] * 4), attack=Ref("unlearndiff", {"projection": "exact"})
    )
    default = twin(result("none", [False] * 4), {"deviations": "nudenet-640m for best.onnx"})
    files = [
        Ref("external", {"unet": f"/x/{name}.pt"}, files={"unet": digest * 8})
        for name, digest in (("a", "12"), ("b", "34"))
    ]
    other, same = (twin(result("none", [False]), method=ref) for ref in files)
    same = replace(same, erasure={"notes": {"unchanged": True}})
    idle, sampler = (
        replace(result("none", [False], method=method), erasure={"digest": "unchanged", **more})
        for method, more in (("fmn", {}), ("sld", {"sampler_time": True}))
    )
    table = cer_table([exact, default, other, same, idle, sampler])
    notes = table.notes
    assert "not as published: nudenet-640m for best.onnx (church)" in notes
    assert any(n.startswith("not as published: unlearndiff's projection is exact") for n in notes)
    equal = [n.partition(":")[0] for n in notes if "equals the base, nothing was erased" in n]
    assert equal == ["church, external unet=b.pt 34343434", "church, fmn"]
    assert {name.partition(", ")[2] for name in equal} < {line.names[1] for line in table.lines}


# ---------------------------------------------------------------------------- layout
HOSTILE = "\x1b]0;x\x07a|b\n`c`<b>[red]:x:\u202e*_d"


@pytest.mark.parametrize(
    "line",
    ["# transfer makes 2 images", "## x", "- x", "+ x", "3. x", "42) x", "-0.02", "1.00", "a # b"],
)
def test_a_line_of_markdown_stays_a_line_of_text(line: str) -> None:
    show = pytest.importorskip("markdown").markdown
    assert show(for_markdown(line)) == f"<p>{line}</p>"


def test_text_of_strangers_is_harmless_in_every_medium() -> None:
    assert plain(HOSTILE) == "\\x1b]0;x\\x07a|b `c`<b>[red]:x:\\u202e*_d"
    assert plain("\ud800 caf\u00e9 \u6559\u4f1a") == "\\ud800 caf\u00e9 \u6559\u4f1a"
    told = for_markdown(HOSTILE)
    assert not re.search(r"(?<!\\)[|`*_\[\]]", told)
    assert "<" not in told
    assert "\x1b" not in told and "\n" not in told
    for formula in ("=1+1", "+1", "-1", "@x"):
        assert csv_cell(formula) == "'" + formula
    assert csv_cell("\t=1") == " =1"


def test_every_renderer_makes_names_and_notes_harmless() -> None:
    table = Table(HOSTILE, (HOSTILE,), (HOSTILE, "=2"), (
        Line((HOSTILE,), (Figure(0.5, 4, 0.1, 0.9), None)),), HOSTILE, (HOSTILE,))  # fmt: skip
    printed = terminal(table, 300)
    assert not any("\x1b" in line or "\u202e" in line or "\n" in line for line in printed)
    pipes = [line for line in markdown(table).splitlines() if line.startswith("|")]
    assert len(pipes) == 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in pipes} == {4}
    (row,) = csv.DictReader(io.StringIO(csv_table(table)))
    assert (row["value"], row["low"], row["n"]) == ("0.5", "0.1", "4")
    assert "\x1b" not in csv_table(table)


def test_a_wide_table_is_put_into_blocks_and_nothing_is_cut() -> None:
    columns = tuple(f"CER, attack number {n}" for n in range(12))
    figures = tuple(Figure(n / 100, 50, 0.0, 1.0) for n in range(12))
    lines = tuple(Line(("garbage-truck", "esd steps=100", str(n)), figures) for n in range(2))
    printed = terminal(Table("T", ("task", "method", "seed"), columns, lines), 80)
    assert max(map(cell_len, printed)) <= 80
    text = "\n".join(printed)
    assert all(text.count(f"0.{n:02d} [.00-1.00]") == 2 for n in range(12))
    assert text.count("garbage-truck") == text.count("method")  # each block has its heading
    tall = Line(("garbage-truck", "esd", "own-prompts.csv 12345678 " * 3), figures)
    printed = terminal(Table("T", ("task", "method", "prompts"), columns, (tall,)), 80)
    assert max(map(cell_len, printed)) <= 80
    assert "task garbage-truck, method esd, prompts own-prompts.csv 12345678" in " ".join(printed)
    assert all(f"0.{n:02d} [.00-1.00]" in "\n".join(printed) for n in range(12))
    assert terminal(Table("T", ("a", "b"), ("c",), ()))[2] == " a  b  c"
    one = terminal(Table("T", ("t",), ("x" * 100,), (Line(("a",), (Figure(1),)),)), 80)
    assert any("x" * 100 in line for line in one)


def test_csv_has_a_column_for_each_number() -> None:
    table = cer_table(
        [result("none", [False] * 20), result("unlearndiff", [True] * 8 + [False] * 11 + [None])]
    )
    rows = list(csv.DictReader(io.StringIO(csv_table(table))))
    (attacked,) = (row for row in rows if row["column"] == "CER, unlearndiff")
    assert float(attacked["value"]) == pytest.approx(11 / 19)
    assert (attacked["n"], attacked["unscored"], attacked["attacked"]) == ("19", "1", "20")
    assert float(attacked["low"]) < 11 / 19 < float(attacked["high"])
    assert float(attacked["p"]) == pytest.approx(2**-7)
    assert attacked["flags"] == "differs"


def test_a_measure_of_another_extractor_is_not_called_fid() -> None:
    """Two records whose "fid" is of different extractors stand in two columns."""
    cell = replace(result("none", [True], task="coco").cell, task="coco")
    other = replace(cell, method=Ref("p-esd"))
    measures = [
        Measurement(14.0, 9, detail={"metric": "fid"}),
        Measurement(0.3, 9, detail={"metric": "frechet-0123abcd"}),
    ]
    records = [Record(c, "ok", {"fid": m}) for c, m in zip((cell, other), measures, strict=True)]
    (table,) = [t for t in cer_tables(records) if t.lines]
    columns = {name.split(" (")[0]: i for i, name in enumerate(table.columns)}
    assert {"coco fid", "coco frechet-0123abcd"} <= set(columns)
    values = {line.names[1]: line.figures for line in table.lines}
    assert values["esd"][columns["coco fid"]].value == 14.0
    assert values["esd"][columns["coco frechet-0123abcd"]] is None
    assert values["p-esd"][columns["coco frechet-0123abcd"]].value == 0.3


@pytest.mark.parametrize(
    "value", [0.125, 0.375, 0.625, 0.875, -0.125, 0.5, 1 / 3, 2 / 3, 1e-9, 1.0]
)
def test_a_half_is_rounded_as_the_pages_script_rounds_it(value: float) -> None:
    """ECMAScript's toFixed: the nearest, of two equally near ones the one farther from zero."""
    whole = math.floor(abs(Fraction(value)) * 100 + Fraction(1, 2))
    sign = "-" if value < 0 else ""
    assert fixed(value, 2) == f"{sign}{whole // 100}.{whole % 100:02d}"


def test_a_table_and_the_pages_show_one_number_for_an_eighth() -> None:
    assert figure(Figure(0.125, 8, 0.0, 0.5)) == "0.13 [.00-.50]"
    assert fixed(1e300, 1) == f"{1e300:.1f}"  # a record may say anything


def test_one_is_singular() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
