"""The paper's tables: its numbers, and which record fills which place."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from rich.cells import cell_len

from bench import Concept
from bench.errors import SpecError
from bench.plan.cell import Cell
from bench.plugins.registry import Ref, resolved
from bench.report.frame import Figure, Table
from bench.report.paper import TABLES, Place, layout, paper_tables
from bench.report.render import (
    csv_table,
    json_table,
    latex,
    markdown,
    side_by_side,
    terminal,
    unfolded,
)
from bench.store.metrics import Measurement, rate
from bench.store.record import Record, Row
from bench.store.store import Store

ROOT = Path(__file__).resolve().parent.parent

# The numbers as a second reader wrote them down: by row, columns in the order of the paper.
PUBLISHED = {
    1: """.11 .60 .63 .80 .83 .95
          .00 .14 .17 .40 .36 .86
          .01 .13 .26 .39 .42 .82""",
    2: """216 81 69 58 55 7
          167 52 54 24 21 1
          50 15 5 13 8 3
          41 16 18 7 17 4
          289 56 66 32 19 0
          21 4 4 2 0 1
          28 13 9 3 2 0
          5 5 2 1 0 3
          817 242 227 140 122 19""",
    3: """.28 .82 .84 .80 1.00
          .04 .42 .52 .62 .90
          .06 .46 .56 .62 .86""",
    4: "14.64 14.32 13.60 15.01 15.08",
    5: """.64 1 1 1  .48 .98 .94 .96  .48 .94 .86 .88  .54 .98 .98 1
          .12 .96 .78 .92  .02 .84 .64 .80  .12 .74 .58 .64  .08 .84 .90 .86
          .14 .92 .86 .98  .08 .90 .82 .74  .16 .64 .64 .68  .04 .88 .82 .94""",
    6: """.60 .87 .95
          .40 .56 .86
          14.32 17.31 13.60""",
    7: """13.72 16.07 17.75 16.21
          13.23 16.72 14.09 15.31""",
    8: """.59 .86 .89
          12.75 13.60 14.06""",
}
CONCEPTS = {
    "nudity": Concept("nudity", "nsfw", "people"),
    "van gogh": Concept("van gogh", "style", "painting"),
} | {name: Concept(name, "object") for name in ("tench", "parachute", "church", "garbage truck")}


@cache
def known(kind, name: str, params: tuple[tuple[str, object], ...], concept: Concept, world) -> Ref:
    return resolved(kind, Ref(name, dict(params)), concept, world)


def record(
    task: str, method: str, attack: str = "none", *, concept: str = "", world="photo", model="sd14",
    successes: list[bool | None] | None = None, **changes,
) -> Record:  # fmt: skip
    """Return a record of a plug-in's own parameters, of prompts that all failed or as is said."""
    erased = CONCEPTS[concept or {"i2p": "nudity"}.get(task, task.replace("-", " "))]
    params = tuple(changes.pop("params", {}).items())
    refs = [
        known("methods", method, params, erased, world),
        known("attacks", attack, (), erased, world),
    ]
    outcomes = [False] * 10 if successes is None else successes
    rows = tuple(
        Row(str(i), "text", i, 7.5, success, own=None, adversarial=attack)
        for i, success in enumerate(outcomes)
    )
    cell = Cell(
        world, model, "r", "fp32", refs[0], erased, task, "d", len(outcomes), refs[1],
        changes.pop("seed", 0),
    )  # fmt: skip
    return replace(Record(cell, "ok", {"asr": rate(outcomes)}, rows), **changes)


def places(world="photo") -> list[tuple[int, Place, float | None]]:
    return [
        (number, place, published)
        for number in TABLES
        for row in layout(number, world).rows
        for place, published in zip(row.places, row.published, strict=True)
    ]


def filling(place: Place, published: float) -> Record:
    """Return the record that a study would have that found exactly what is published."""
    some = record(place.task, place.method, place.attack, concept=place.concept, params=place.params) \
        if place.concept or place.task not in {"coco"} else \
        record(place.task, place.method, concept="nudity")  # fmt: skip
    if place.measure != "cer":
        return replace(some, measurements={place.measure: Measurement(published, 30_000)}, rows=())
    successes = [True] * round(50 * (1 - published)) + [False] * round(50 * published)
    return record(
        place.task, place.method, place.attack, concept=place.concept, params=place.params,
        successes=successes[:50],
    )  # fmt: skip


def figures(table: Table) -> list[Figure]:
    return [f for line in table.lines for f in line.figures if f]


def of(tables: list[Table], number: int) -> Table:
    return next(t for t in tables if t.number == number)


@pytest.mark.parametrize("number", TABLES)
def test_published_numbers_are_those_of_the_paper(number: int) -> None:
    expected = [[float(n) for n in line.split()] for line in PUBLISHED[number].splitlines()]
    rows = [list(row.published) for row in layout(number, "photo").rows if row.places]
    if number == 4:  # one column
        rows = [[value for row in rows for value in row]]
    assert rows == expected


def test_the_papers_total_is_the_sum_of_its_labels() -> None:
    *labels, total = (row.published for row in layout(2, "photo").rows)
    assert tuple(map(sum, zip(*labels, strict=True))) == total


def test_a_study_that_found_what_is_published_has_no_difference() -> None:
    """Each place takes its own record: numbers that are put in another place would differ."""
    wanted = [(n, p, value) for n, p, value in places() if n not in {2, 6} and value is not None]
    found = [filling(p, value) for _, p, value in wanted]
    tables = paper_tables({r.cell.id: r for r in found}.values(), [1, 3, 4, 5, 7, 8])
    assert [t.number for t in tables] == [1, 3, 4, 5, 7, 8]
    assert sum(len(figures(t)) for t in tables) == len(wanted)
    for table in tables:
        for f in figures(table):
            assert f.difference is not None
            assert f.difference == pytest.approx(0, abs=0.0101)  # 50 prompts
            assert "other parameters" not in f.flags
            assert "outside" not in f.flags
    assert figures(of(tables, 1))[0].n == 50
    assert figures(of(tables, 4))[0].n == 30_000
    assert latex(of(tables, 4)).startswith("% Table 4 of the paper\n")
    assert "setcounter" not in latex(of(tables, 4))  # the tables around it count on


def test_table_6_differs_where_the_paper_contradicts_itself() -> None:
    wanted = [(p, value) for n, p, value in places() if n == 1 and value is not None]
    (table,) = paper_tables([filling(*each) for each in wanted], [6])
    esd, missing, _, *_ = figures(table)
    assert esd.difference == pytest.approx(0.80 - 0.60)
    assert "outside" in esd.flags
    assert missing.missing
    assert missing.published == 0.87
    assert any("0.80 in Table 1" in note for note in table.notes)


def test_labels_are_counted_and_none_is_zero_by_absence() -> None:
    def shows(method: str, *labels: str) -> Record:
        some = record("i2p", method, successes=[bool(labels), False])
        details = [{"found": dict.fromkeys(labels, 0.9), "detections": dict.fromkeys(labels, 3)},
                   {"found": {}, "detections": {}}]  # fmt: skip
        rows = (replace(r, detail=d) for r, d in zip(some.rows, details, strict=True))
        return replace(some, rows=tuple(rows))

    feet, belly = "EXPOSED_FEET", "EXPOSED_BELLY"
    (table,) = paper_tables([shows("none", feet, belly), shows("p-esd", feet)], [2])
    found = {line.names[0]: line.figures for line in table.lines}
    assert [f.value for f in (found[feet][0], found[feet][5])] == [3, 3]
    assert [f.value for f in (found[belly][0], found[belly][5])] == [3, 0]
    assert found["EXPOSED_ARMPITS"][0].missing  # nobody knows whether the judge looks for it
    assert [found["Total"][c].value for c in (0, 5)] == [6, 3]
    assert found[feet][5].difference == 3 - 4
    assert found[feet][1].missing


def test_failed_skipped_and_missing_cells_are_no_numbers() -> None:
    bad = record("nudity", "esd", status="failed", measurements={}, rows=(), reason="no luck")
    none = record(
        "nudity", "uce", status="skipped", measurements={}, rows=(), reason="does not fit"
    )
    unread = record("nudity", "p-esd", successes=[None, None])
    (table,) = paper_tables([bad, none, unread], [1])
    row = table.lines[0].figures
    assert [(f.value, f.word) for f in row] == [
        (None, ""), (None, "skipped"), (None, ""), (None, "failed"), (None, ""), (None, ""),
    ]  # fmt: skip
    assert [f.missing for f in row] == [True, False, True, False, True, False]
    assert all(f.published is not None and f.difference is None for f in row)
    said = "\n".join(terminal(table))
    assert re.search(r"Test Prompts +· +skipped +· +failed +· +n/a \(0 of 2 scored\)", said)
    assert "failed: nudity, esd, attack none: no luck" in said
    assert " 0.00 " not in said.split("paper")[0]


def test_a_stand_in_shows_a_difference_only_if_asked() -> None:
    some = [record("nudity", "esd", world="emoji", model="emoji-sd")]
    (table,) = paper_tables(some, [1])
    assert "emoji world" in table.caption
    assert "Stable Diffusion v1.4" in table.caption
    (shown,) = (f for f in figures(table) if not f.missing)
    assert (shown.value, shown.published, shown.difference) == (1.0, 0.80, None)
    (table,) = paper_tables(some, [1], compare=True)
    assert [f.difference for f in figures(table) if not f.missing] == [pytest.approx(0.20)]
    other = paper_tables([record("nudity", "esd", model="sd15")], [1])[0]
    assert all(f.difference is None for f in figures(other))


def test_another_measure_has_nothing_published_beside_it() -> None:
    for number, place, published in places("emoji"):
        assert (published is None) == (place.measure != "cer"), number
    (table,) = paper_tables([record("nudity", "esd", world="emoji", model="emoji-sd")], [7])
    assert "published" not in table.caption
    assert not any("FID" in note for note in table.notes)


def test_fid_of_other_numbers_of_images_has_no_difference() -> None:
    fid = {"fid": Measurement(20.0, 10_000)}
    (table,) = paper_tables([record("coco", "esd", concept="nudity", measurements=fid)], [4])
    (shown,) = (f for f in figures(table) if not f.missing)
    assert (shown.value, shown.n, shown.difference) == (20.0, 10_000, None)


def test_the_plug_ins_own_parameters_come_first() -> None:
    quick = record("nudity", "esd", params={"steps": 3})
    (alone,) = paper_tables([quick], [1])
    (shown,) = (f for f in figures(alone) if not f.missing)
    assert "other parameters" in shown.flags
    assert "†" in alone.legend
    own = record("nudity", "esd", successes=[True] * 10)
    (both,) = paper_tables([quick, own], [1])
    (shown,) = (f for f in figures(both) if not f.missing)
    assert shown.value == 0.0
    assert "other parameters" not in shown.flags


def test_records_that_fit_as_well_are_named() -> None:
    many = record("nudity", "esd", successes=[True] * 12)
    few = record("nudity", "esd")
    (table,) = paper_tables([few, many], [1])
    assert [f.n for f in figures(table) if not f.missing] == [12]
    (note,) = (n for n in table.notes if "beside the one shown" in n)
    assert few.cell.id in note
    assert many.cell.id not in note


def test_one_seed_is_shown_and_the_others_are_named() -> None:
    some = [record("nudity", "esd", seed=seed, successes=[seed == 2] * 4) for seed in (1, 2)]
    (table,) = paper_tables(some, [1])
    assert [f.value for f in figures(table) if not f.missing] == [1.0]
    assert any("seed 2" in note for note in table.notes)
    (table,) = paper_tables(some, [1], seed=2)
    assert [f.value for f in figures(table) if not f.missing] == [0.0]
    with pytest.raises(SpecError, match="seed 9"):
        paper_tables(some, [1], seed=9)
    with pytest.raises(SpecError, match="from 1 to 8, got 9"):
        paper_tables(some, [9])


# ---------------------------------------------------------------------------- layouts for people
@pytest.fixture(scope="module")
def reference() -> list[Table]:
    return paper_tables(Store(ROOT / "results" / "reference").load()[0], compare=True)


def test_the_terminal_shows_the_papers_rows_and_groups_in_80_columns(reference) -> None:
    for table in reference:
        lines = terminal(table)
        assert max(map(cell_len, lines)) <= 80
        assert sum(line.strip() == "Adversarial Prompts:" for line in lines) <= 4
    objects = terminal(of(reference, 5))
    heads = [
        name
        for line in objects
        for name in re.split(r"\s{2,}", line.strip())
        if name in {"Tench", "Parachute", "Church", "Garbage Truck"}
    ]
    assert heads == ["Tench", "Parachute", "Church", "Garbage Truck"]  # never torn apart
    assert {"95 %", "paper", "difference"} <= {
        line.split("  ")[1].strip() for line in objects if line.startswith("   ")
    }


def test_wide_tables_are_parted_between_groups() -> None:
    over = ("a",) * 3 + ("b",) * 3 + ("c",) * 3
    line = tuple(Figure(n) for n in range(9))
    from bench.report.frame import Line

    table = Table("t", ("x",), tuple("abcdefghi"), (Line(("1",), line),), over=over)
    parts = side_by_side(table, 6)
    assert [p.over for p in parts] == [over[:6], over[6:]]
    assert [f.value for p in parts for f in p.lines[0].figures] == list(range(9))
    assert [len(p.columns) for p in side_by_side(table, 2)] == [3, 3, 3]
    assert side_by_side(table, 9) == [table]
    assert side_by_side(replace(table, over=())) == [replace(table, over=())]


def test_markdown_and_json_and_csv_say_the_same(reference) -> None:
    for table in reference:
        data = json.loads(json.dumps(json_table(table)))
        rows = list(csv.DictReader(io.StringIO(csv_table(table))))
        flat = [
            (list(line["names"].values()), f) for line in data["lines"] for f in line["figures"]
        ]
        assert len(rows) == len(flat)
        for row, (names, f) in zip(rows, flat, strict=True):
            assert [row[name] for name in table.names] == names
            for key in ("value", "n", "low", "high", "p", "published", "difference"):
                if key in row:
                    assert (float(row[key]) if row[key] else None) == pytest.approx(f[key])
            assert row["flags"].split(";") == (f["flags"] or [""])
            assert (row["status"] == "missing") == (f["value"] is None)
        shown = markdown(table)
        sizes = {
            line.replace(r"\|", "").count("|")
            for line in shown.splitlines()
            if line.startswith("| ")
        }
        assert len(sizes) == 1


def test_n_is_said_once_where_it_is_the_same_and_below_each_line_where_it_is_not(reference) -> None:
    table = of(reference, 1)
    for shown in (" ".join(terminal(table)), markdown(table), latex(table)):
        assert re.search(r"N=50\b", shown)
        assert not re.search(r"^\W*N +", shown, re.MULTILINE)
    many = record("nudity", "esd", world="emoji", model="emoji-sd", successes=[False] * 142)
    few = record("nudity", "uce", world="emoji", model="emoji-sd")
    (table,) = paper_tables([many, few], [1])
    assert re.search(r"^ +N +· +10 +· +142 +· +·$", "\n".join(terminal(table)), re.MULTILINE)
    assert not re.search(r"N=\d", table.legend)


def test_lines_below_a_line_are_only_those_that_it_has(reference) -> None:
    names = [line.names[-1].strip() for line in unfolded(of(reference, 6)).lines]
    of_a_value = ["95 %", "N", "paper", "difference"]  # the distance is of 300 images
    assert names[:5] == ["test prompts", *of_a_value]
    assert names[5:] == ["adversarial prompts", *of_a_value, "", "N"]


HOSTILE = '\\end{tabular}[x]*&%$#_{}~^<script>| \\input{/etc/passwd} 漢 😀 \x1b[2J é "q" -- --- `a`'


@pytest.fixture
def pdflatex(tmp_path: Path) -> Callable[[str], str]:
    if not shutil.which("pdflatex"):
        pytest.skip("needs pdflatex")

    def compiled(body: str) -> str:
        text = ("\\documentclass{article}\n\\usepackage[utf8]{inputenc}\n\\usepackage{booktabs,multirow}\n"
                f"\\begin{{document}}\n{body}\n\\end{{document}}\n")  # fmt: skip
        (tmp_path / "t.tex").write_text(text, encoding="utf-8")
        command = [
            "pdflatex",
            "-interaction=nonstopmode",
            "-halt-on-error",
            "-no-shell-escape",
            "t.tex",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:].decode("utf-8", "replace")
        return (tmp_path / "t.log").read_text(encoding="utf-8", errors="replace")

    return compiled


def test_latex_compiles_and_has_the_papers_columns(pdflatex, reference) -> None:
    body = "\\clearpage\n".join(map(latex, reference))
    assert "Undefined" not in pdflatex(body)
    objects = latex(of(reference, 5))
    assert (
        objects.count(r"\begin{tabular}{lrrrrrrrr}") == 2
    )  # Tench, Parachute; Church, Garbage Truck
    assert r"\multicolumn{4}{c}{Garbage Truck}" in objects
    assert r"\toprule" in objects


def test_latex_sets_hostile_text_as_text(pdflatex) -> None:
    from bench.report.frame import Line

    figures = (Figure(word=HOSTILE), Figure(0.5, 4, 0.25, 0.75, flags=("differs",), published=0.25))
    table = Table(HOSTILE, (HOSTILE, "["), (HOSTILE, "*"), (Line(("[x]", "*"), figures),) * 2, HOSTILE,
                  (HOSTILE,), over=(HOSTILE, HOSTILE), number=3)  # fmt: skip
    shown = latex(table)
    assert "\x1b" not in shown
    assert "\\input" not in shown.replace("\\textbackslash{}input", "")
    pdflatex(shown)


# ---------------------------------------------------------------------------- the command
def test_the_command_prints_the_tables_in_every_format(cli) -> None:
    results = str(ROOT / "results" / "reference")
    said = cli("report", "paper", "--table", "1", "--table", "6", "--results", results)
    assert (said.code, said.err) == (0, "")
    assert [line[:7] for line in said.out.splitlines() if line.startswith("Table ")] == [
        "Table 1",
        "Table 6",
    ]
    said = cli("report", "paper", "--table", "1", "--format", "latex", "--results", results)
    assert said.out.startswith("% Table 1 of the paper\n% \\usepackage{booktabs")
    whole = json.loads(cli("report", "paper", "--format", "json", "--results", results).out)
    assert [table["number"] for table in whole] == list(TABLES)
    plain = json.loads(cli("report", "--format", "json", "--results", results).out)
    assert plain[0]["columns"][0] == "CER, no attack"
    assert cli("report", "--table", "1", "--results", results).code == 2
    assert cli("report", "paper", "--table", "9", "--results", results).code == 2


def test_records_that_cannot_be_used_are_named_and_left_out(cli, tmp_path: Path) -> None:
    folder = tmp_path / "records"
    store = Store(folder)
    good = store.put(record("nudity", "esd"))
    (good.parent / "copy.json").write_bytes(good.read_bytes())  # an equal copy is no harm
    cut = store.put(record("nudity", "uce"))
    cut.write_bytes(cut.read_bytes()[:100])
    newer = store.put(record("nudity", "ac"))
    newer.write_text(newer.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    renamed = store.put(record("nudity", "fmn"))
    renamed = renamed.rename(renamed.with_name("fmn--none--" + "0" * 16 + ".json"))
    twice = store.put(record("nudity", "p-esd"))
    elsewhere = Store(tmp_path / "elsewhere")
    other = elsewhere.put(record("nudity", "p-esd", successes=[True] + 9 * [False]))
    other = other.rename(twice.with_name("again.json"))  # one cell, and other verdicts
    false = store.put(record("nudity", "p-ac"))
    false.write_text(false.read_text().replace('"value": 0.0', '"value": 0.5'))

    said = cli("report", "paper", "--table", "1", "--results", str(folder))
    assert said.code == 0
    lines = said.err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("warning: passed over") for line in lines)
    for path in (cut, newer, renamed, twice, other, false):
        assert sum(str(path) in line for line in lines) == 1, path
    assert str(good) not in said.err
    assert "Test Prompts" in said.out
    assert "no record: 17 of 18" in said.out
    strict = cli("report", "paper", "--strict", "--results", str(folder))
    assert (strict.code, strict.out) == (5, "")
    assert strict.err.splitlines()[-1].endswith("what was passed over is an error: see above")
    good_alone = tmp_path / "good"
    Store(good_alone).put(record("nudity", "esd"))
    assert cli("report", "paper", "--strict", "--results", str(good_alone)).code == 0
