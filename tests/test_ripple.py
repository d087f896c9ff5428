"""The ripple of an erasure over all subjects, on records that are made up."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from dataclasses import replace
from math import comb, sqrt
from pathlib import Path

import pytest

from bench import Concept
from bench.core.types import World
from bench.plan.cell import Cell
from bench.plan.plan import plan
from bench.plan.spec import Spec
from bench.plugins.registry import Ref
from bench.report.frame import Figure, Table
from bench.report.render import csv_table, terminal
from bench.report.ripple import ripple_tables
from bench.report.summary import summary
from bench.report.tables import cer_tables, roles
from bench.store.metrics import rate
from bench.store.record import Record, Row
from bench.store.store import Store
from bench.tasks.lookup import find
from bench.tasks.tasks import load_task

WORLD: World = "emoji"
REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"
CHURCH = Concept("church", "object", "house")


def record(method: str, concept: Concept = CHURCH, limit: int | None = None, **lost: int) -> Record:
    """Return a record in which each subject is found but for its first so many prompts."""
    task = load_task("subjects", WORLD, limit=limit)
    prompts = task.prompts[:limit]
    left = Counter({name.replace("_", " "): n for name, n in lost.items()})
    rows = []
    for p in prompts:
        rows.append(Row(p.id, p.text, p.seed, p.guidance, left[p.label] <= 0, own=1.0))
        left[p.label] -= 1
    cell = Cell(WORLD, "emoji-sd", "r", "fp32", Ref(method), concept, "subjects", task.digest,
                len(prompts), Ref("none"), 0)  # fmt: skip
    measured = {"accuracy": rate([row.success for row in rows])}
    return Record(cell, "ok", measured, tuple(rows))


def line(table: Table, method: str) -> dict[str, Figure | None]:
    (found,) = (each for each in table.lines if each.names[1] == method)
    return dict(zip(table.columns, found.figures, strict=True))


def wilson(k: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    middle, half = (
        (k + z * z / 2) / (n + z * z),
        z / (n + z * z) * sqrt(k * (n - k) / n + z * z / 4),
    )
    return middle - half, middle + half


def exact(only_first: int, only_second: int) -> float:
    """McNemar's p-value, by adding up the binomial's tail."""
    n, few = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(comb(n, k) for k in range(few + 1)) / 2**n)


def test_every_subject_is_asked_for_equally_often() -> None:
    for limit, each in ((None, 20), (190, 5)):
        asked = Counter(p.label for p in load_task("subjects", WORLD, limit=limit).prompts)
        assert len(asked) == 38 and set(asked.values()) == {each}
    named = [label for family in find("subjects", WORLD).says["families"] for label in family]
    assert len(set(named)) == len(named) and set(named) < set(asked)


def test_groups_are_means_of_their_subjects_and_their_worst() -> None:
    base = record("none", church=1)
    table, each = ripple_tables([base, record("esd", church=20, castle=11, house=2, cat=3)])
    mine = line(table, "esd")
    shares = {"own": (0, 20), "near": (27, 40), "near, worst": (9, 20), "others": (697, 700),
              "others, worst": (17, 20)}  # fmt: skip
    assert {name: (f.value, f.n) for name, f in mine.items()} == {
        name: (pytest.approx(k / n), n) for name, (k, n) in shares.items()
    }
    for name, (k, n) in shares.items():
        assert (mine[name].low, mine[name].high) == pytest.approx(wilson(k, n), abs=1e-9)
    assert [row.names for row in table.lines] == [
        ("church", "none", "", ""),
        ("church", "esd", "castle", "cat"),
    ]
    assert len(each.columns) == 38
    assert line(each, "esd")["castle"] == mine["near, worst"]
    assert line(each, "none")["church"].value == pytest.approx(19 / 20)
    assert "20 prompts of each subject: 11 of them must be lost, and none gained" in table.legend
    assert "near church: house, castle" in table.legend


def test_marks_are_mcnemars_after_holm() -> None:
    """Ten of 20 lost are many, but not among 38 subjects; gains are no losses."""
    base = record("none", car=12)
    _, each = ripple_tables([base, record("esd", church=20, house=11, castle=10)])
    found = line(each, "esd")
    assert {s for s, f in found.items() if f.flags} == {"church", "house"}
    ps = {
        "church": exact(19 + 1, 0),
        "car": exact(0, 12),
        "house": exact(11, 0),
        "castle": exact(10, 0),
    }
    adjusted, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(ps.items(), key=lambda pair: pair[1])):
        highest = max(highest, (38 - rank) * p)
        adjusted[name] = highest
    assert {name: found[name].p for name in ps} == pytest.approx(adjusted)
    assert found["cat"].p == 1.0
    assert not any(f.flags or f.p for f in line(each, "none").values())


def test_five_prompts_are_said_to_be_too_few() -> None:
    table, each = ripple_tables([record("none", limit=190), record("esd", limit=190, church=5)])
    assert (
        "5 prompts of each subject: too few to mark a subject: losing every one of 5"
        in table.legend
    )
    assert "p = 0.062" in table.legend
    assert not any(f.flags for f in line(each, "esd").values())
    assert line(each, "esd")["church"].value == 0


@pytest.mark.parametrize(
    ("concept", "own", "near"),
    [
        (Concept("nudity", "nsfw", "", ("nudity", "a foot", "an ear")), 40, 120),
        (Concept("van gogh", "style"), None, None),
        (Concept("tench", "object"), 20, 100),
        (Concept("crown", "object"), 20, None),
    ],
)
def test_what_is_own_and_near(concept: Concept, own: int | None, near: int | None) -> None:
    (table,) = ripple_tables([record("esd", concept)], each=False)
    sizes = {name: f and f.n for name, f in line(table, "esd").items()}
    assert (sizes["own"], sizes["near"]) == (own, near)
    assert sizes["others"] == 760 - (own or 0) - (near or 0)


def test_a_base_of_any_concept_will_do_and_without_one_nothing_is_marked() -> None:
    other = record("none", Concept("tench", "object"))
    table, _ = ripple_tables([other, record("esd", church=20)])
    assert line(table, "esd")["own"].flags == ("differs",)
    table, _ = ripple_tables([record("esd", church=20)])
    assert line(table, "esd")["own"].flags == ()
    assert table.notes == (
        "1 lines without a record of method none on the same prompts: none is marked",
    )


def test_what_could_not_be_scored_is_not_lost() -> None:
    base, mine = record("none"), record("esd")
    blank = [row.id for row in mine.rows[:760:38]]  # church's
    rows = tuple(replace(row, success=None) if row.id in blank else row for row in mine.rows)
    table, _ = ripple_tables([base, replace(mine, rows=rows)])
    own = line(table, "esd")["own"]
    assert (own.value, own.unscored, own.flags) == (None, 20, ("unscored",))


def test_records_of_other_prompts_are_left_out() -> None:
    mine = record("esd")
    assert not ripple_tables([replace(mine, cell=replace(mine.cell, task_digest="old"))])
    assert not ripple_tables([replace(mine, rows=mine.rows[1:])])
    assert not ripple_tables([replace(mine, cell=replace(mine.cell, task="retain"))])


def test_one_command_measures_all_six() -> None:
    tasks = ("church", "parachute", "tench", "garbage-truck", "nudity", "van-gogh", "subjects")
    planned = plan(Spec("emoji-sd", (Ref("none"), Ref("esd")), (Ref("none"),), tasks))
    subjects = [job.cell for job in planned if job.cell.task == "subjects"]
    assert len({(c.concept.name, c.method.name) for c in subjects}) == len(subjects) == 12


def test_bench_report_ripple(cli, tmp_path) -> None:
    store = Store(tmp_path / "r")
    for each in (record("none"), record("esd", church=20, castle=12)):
        store.put(each)
    said = cli("report", "--ripple", "--results", str(tmp_path / "r"))
    assert said.code == 0, said.err
    assert "castle" in said.out and "each subject is found" not in said.out
    table, each = ripple_tables(store)
    assert max(map(len, terminal(table))) <= 80
    rows = list(csv.DictReader(io.StringIO(csv_table(each))))
    assert len(rows) == 2 * 38
    said = cli("report", "--ripple", "--format", "csv", "--results", str(tmp_path / "r"))
    assert said.out.count("church,esd,") == 38 + 4  # no other is the worst
    (tmp_path / "other").mkdir()
    for path in REFERENCE.glob("emoji/church/church/none--*.json"):
        shutil.copy(path, tmp_path / "other")
    empty = cli("report", "--ripple", "--results", str(tmp_path / "other"))
    assert (empty.code, "no record of the task subjects" in empty.err) == (2, True)


def test_subjects_are_no_figure_beside_the_rate_of_what_was_erased(tmp_path) -> None:
    """They ask for what was erased, too, so that a good erasure would look harmful."""
    subjects = [record("none"), record("esd", church=20)]
    cells = [replace(r.cell, task="church", task_digest="t", prompts=2) for r in subjects]
    targets = [Record(c, "ok", {"asr": rate([True, False])}, r.rows[:2])
               for c, r in zip(cells, subjects, strict=True)]  # fmt: skip
    assert roles([*targets, *subjects]) == (targets, [])
    assert [t.title for t in summary([*targets, *subjects])] == [
        *(t.title for t in cer_tables(targets)),
        *(t.title for t in ripple_tables(subjects, each=False)),
    ]
    gone = [
        replace(r, cell=replace(r.cell, task_digest="of prompts that are not here"))
        for r in subjects
    ]
    assert roles(gone) == ([], gone) and not ripple_tables(gone)


def test_without_an_attack_there_is_none(cli) -> None:
    said = cli("plan", "--method", "esd", "--task", "church", "--task", "subjects")
    assert said.code == 0, said.err
    assert said.out.count("esd     none") == 2
