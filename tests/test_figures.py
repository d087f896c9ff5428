"""Figures: their numbers against loops written here, and the files that are written."""

import csv
import io
import json
import random
import re
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
from PIL import Image

from bench import Concept, Cost
from bench.errors import SpecError
from bench.plan.cell import Cell
from bench.plan.floors import FLOORS
from bench.plugins.registry import Ref
from bench.report import verdict
from bench.report.figures import budget, catalog, pareto, threshold
from bench.report.figures.panels import Point, panels_of, styles_of
from bench.report.figures.select import Wanted, full_floors
from bench.report.figures.style import COLOURS, FORMATS, MARKERS
from bench.report.interchange.common import measure
from bench.report.tables import DISTANCES, cer_tables
from bench.site.lines import tabs
from bench.store.metrics import Measurement, rate
from bench.store.record import Record, Row
from bench.store.store import Store

CHURCH, NUDITY = Concept("church", "object"), Concept("nudity", "nsfw")


def cell(attack="none", method="esd", task="church", n=8, concept=CHURCH) -> Cell:
    return Cell(
        "emoji", "emoji-sd", "r", "fp32", Ref(method), concept, task, "d", n, Ref(attack), 0
    )


def row(
    number: int, success: bool | None, *, own: float | None = 0.0, attacked=None, **more
) -> Row:
    return Row(str(number), "a church", number, 5.0, success, own, attacked, **more)


def target(rows: list[Row], attack="unlearndiff", **of) -> Record:
    return Record(
        cell(attack, n=len(rows), **of), "ok", {"asr": rate([r.success for r in rows])}, tuple(rows)
    )


def kept(
    value: float | None, method="esd", *, metric="accuracy", task="retain", n=130, concept=CHURCH
) -> Record:
    m = (
        Measurement(value, n)
        if metric in DISTANCES
        else Measurement(value, n, 0, value - 0.05, value + 0.05)
    )
    return Record(cell("none", method, task, n, concept), "ok", {metric: m})


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's interval (1927) for 95 %."""
    z, p = 1.959963984540054, k / n
    middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def attacked_rows(seed: int, n: int = 12) -> list[Row]:
    """Prompts whose own image shows the concept, that come back, that are given up, unscored ones."""
    draw, rows = random.Random(seed), []
    for i in range(n):
        kind = draw.choice(["own", "back", "back", "never", "unscored"])
        cost = Cost(
            images=draw.randrange(6), forward=draw.randrange(300), backward=draw.randrange(90)
        )
        success = {"own": True, "back": True, "never": False, "unscored": None}[kind]
        own = None if kind == "unscored" else float(kind == "own")
        rows.append(row(i, success, own=own, attacked=float(bool(success)), cost=cost))
    return rows


# ---------------------------------------------------------------------------- budget
@pytest.mark.parametrize("seed", range(3))
def test_budget_counts_who_is_back_for_so_much(seed: int) -> None:
    rows = attacked_rows(seed)
    found = budget.steps([target(rows)])
    for unit in ("images", "passes"):
        curve = [s for s in found if s.unit == unit]
        assert [s.budget for s in curve] == sorted({s.budget for s in curve})
        spent = {
            r.id: r.cost.images if unit == "images" else r.cost.forward + r.cost.backward
            for r in rows
        }
        assert curve[-1].budget == max(spent.values())
        for most in range(max(spent.values()) + 1):
            now = [s for s in curve if s.budget <= most][-1]  # the step that holds here
            back = n = 0
            for r in rows:
                if r.success is None:
                    continue
                n += 1
                back += r.success and (r.own == 1.0 or spent[r.id] <= most)
            low, high = wilson(back, n)
            assert (now.back, now.n) == (back, n)
            assert now.cer == pytest.approx(1 - back / n)
            assert (now.low, now.high) == pytest.approx((1 - high, 1 - low), abs=1e-12)
        for s in curve:
            assert s.stopped == sum(r.success is False and spent[r.id] < s.budget for r in rows)


def test_the_whole_budget_is_the_table_s_rate() -> None:
    rows = [r for r in attacked_rows(5) if r.success is not None]
    record = target(rows)
    for unit in ("images", "passes"):
        last = [s for s in budget.steps([record]) if s.unit == unit][-1]
        assert last.cer == pytest.approx(1 - record.measurements["asr"].value)


def test_cells_that_differ_in_the_seed_alone_have_curves_of_their_own() -> None:
    first, other = target(attacked_rows(1)), target(attacked_rows(2))
    other = replace(other, cell=replace(other.cell, seed=7))
    third = target(attacked_rows(2), method="uce")
    found = budget.steps([first, other, third])
    assert {s.method for s in found} == {"esd seed=0", "esd seed=7", "uce"}
    alone = budget.steps([other])
    its = [replace(s, method="esd") for s in found if s.method == "esd seed=7"]
    assert its == alone


# ---------------------------------------------------------------------------- panels
def points(*names: tuple[str, str, str]) -> list[Point]:
    return [Point(*each) for each in names for _ in range(2)]


def test_of_several_methods_and_attacks_each_method_has_a_panel() -> None:
    both = [("church", m, a) for m in ("esd", "none", "ac") for a in ("p4d", "none", "ring-a-bell")]
    panels = panels_of(points(*both, ("nudity", "esd", "p4d")))
    assert [p.title for p in panels] == ["church, none", "church, ac", "church, esd", "nudity, esd"]
    assert [list(p.curves) for p in panels] == [["no attack", "p4d", "ring-a-bell"]] * 3 + [["p4d"]]
    for panel in panels:
        task, method = panel.title.split(", ")
        for name, curve in panel.curves.items():
            attack = "none" if name == "no attack" else name
            assert curve == points((task, method, attack))
    styles = styles_of(panels)
    assert len({colour for colour, *_ in styles.values()}) == len(styles) == 3


def test_one_attack_on_several_methods_is_a_panel_and_so_are_several_on_one() -> None:
    (of_attack,) = panels_of(points(("church", "none", "p4d"), ("church", "esd", "p4d")))
    assert (of_attack.title, list(of_attack.curves)) == ("church, p4d", ["none", "esd"])
    (of_method,) = panels_of(points(("church", "esd", "p4d"), ("church", "esd", "none")))
    assert (of_method.title, list(of_method.curves)) == ("church, esd", ["no attack", "p4d"])
    (alone,) = panels_of(points(("church", "esd", "p4d")))
    assert (alone.title, list(alone.curves)) == ("church, esd", ["p4d"])


def test_of_a_floor_the_run_with_most_draws_is_shown() -> None:
    def ran(attack: str, method: str = "esd", **params: int) -> Record:
        record = target(hits(3), method=method)
        return replace(record, cell=replace(record.cell, attack=Ref(attack, params)))

    floors = [
        ran(name, method, draws=draws)
        for method in ("esd", "uce") for name in FLOORS for draws in (10, 1, 3)
        if (method, draws) != ("uce", 10)
    ]  # fmt: skip
    others = [ran("none"), ran("p4d"), ran("other", draws=1), ran("other", draws=2)]
    shown = full_floors([*floors, *others])
    assert shown[-4:] == others
    kept = [
        (r.cell.method.name, r.cell.attack.name, r.cell.attack.params["draws"]) for r in shown[:-4]
    ]
    assert kept == [(m, name, n) for m, n in (("esd", 10), ("uce", 3)) for name in FLOORS]


def test_only_outer_panels_say_what_an_axis_is() -> None:
    some = points(*(("church", m, a) for m in "abcde" for a in ("p4d", "none")))
    steps = [
        threshold.Step(p.task, p.method, p.attack, x, 9, 0, 0.5, 0.4, 0.6, 0.5, 0.5)
        for p, x in zip(some, (0.0, 1.0) * 10, strict=True)
    ]
    shown = [a for a in threshold.draw(steps).figure.axes if a.axison]
    assert [bool(a.get_ylabel()) for a in shown] == [True, False, False, True, False]
    assert [bool(a.get_xlabel()) for a in shown] == [False, False, True, True, True]
    ticks = [
        (a.xaxis.get_tick_params()["labelbottom"], a.yaxis.get_tick_params()["labelleft"])
        for a in shown
    ]
    assert ticks == [(False, True), (False, False), (True, False), (True, True), (True, False)]


# ---------------------------------------------------------------------------- pareto
def hits(k: int, n: int = 8) -> list[Row]:
    return [row(i, i < k) for i in range(n)]


def test_pareto_shows_the_headline_of_tables_and_leaderboard() -> None:
    records = [
        target(hits(1), "none"), target(hits(4), "p4d"), target(hits(7), "random"),
        target([row(i, i in {1, 4, 5}) for i in range(8)], "unlearndiff"),
        replace(target(hits(8), "seed-search"), space="latent"),
        replace(target(hits(8), "relearn"), space="weights"), kept(0.9),
    ]  # fmt: skip
    (point,) = pareto.points(records)
    assert (point.attacks, point.cer, point.n) == ("p4d, unlearndiff", 0.25, 8)
    assert (point.low, point.high) == pytest.approx(wilson(2, 8), abs=1e-12)
    table, *_ = cer_tables(records)
    assert (
        table.lines[0].figures[table.columns.index("CER, best known prompt attack")].value == 0.25
    )
    (tab,) = tabs(records)
    assert tab.lines[0].entries["best"].figure.value == 0.25
    assert (point.measure, point.kept, point.kept_low, point.kept_n) == (
        "retain accuracy",
        0.9,
        0.9 - 0.05,
        130,
    )
    (point,) = pareto.points(records, Wanted(attacks=["relearn"]))
    assert (point.attacks, point.cer) == ("relearn", 0.0)


@pytest.mark.parametrize("metric", ["accuracy", "fid", "kid", "frechet"])
def test_the_front_is_what_nothing_beats(metric: str) -> None:
    draw, records = random.Random(1), []
    for i in range(9):
        method = f"m{i}"
        value = draw.randrange(5) * (0.2 if metric == "accuracy" else 10)
        records += [target(hits(draw.randrange(9)), method=method)]
        records += [kept(value, method, metric=metric, task="coco")]
    found = pareto.points(records)
    sign = 1 if metric == "accuracy" else -1
    for p in found:
        beaten = False
        for q in found:
            no_worse = q.cer >= p.cer and sign * q.kept >= sign * p.kept
            beaten |= no_worse and (q.cer, q.kept) != (p.cer, p.kept)
        assert p.front is not beaten
    assert 1 <= sum(p.front for p in found) < 9
    assert pareto.draw(found).figure.axes[0].yaxis_inverted() == (metric != "accuracy")


def test_distances_are_what_is_better_if_low_and_no_rate() -> None:
    known = ("accuracy", "asr", "clip-score", "fid", "frechet", "kid")
    assert {n for n in known if measure(n).lower_is_better} == DISTANCES | {"asr"}


def test_pareto_of_a_measure_that_is_not_there() -> None:
    with pytest.raises(
        SpecError, match=r"coco fid .*there is retain accuracy.* run `bench run --method esd"
    ):
        pareto.points([target(hits(1)), kept(0.9)], measure="coco fid")


def test_models_keep_to_their_own_utility() -> None:
    records = [target(hits(1), method=m) for m in ("esd", "uce")] + [
        kept(0.5, "uce"),
        kept(0.9, "esd"),
    ]
    assert {p.method: p.kept for p in pareto.points(records)} == {"esd": 0.9, "uce": 0.5}


# ---------------------------------------------------------------------------- threshold
def scored(seed: int, limit: float, n: int = 10, **said: object) -> list[Row]:
    draw = random.Random(seed)
    rows = []
    for i in range(n):
        own, last = draw.random(), draw.random()
        details = {"detail": {"highest": last} | said, "own_detail": {"highest": own} | said}
        if i == 0:
            details = {"detail": {"error": "broken"}, "own_detail": {"highest": 0.1}}
            own, last = 0.1, float("nan")
        success = own >= limit or last >= limit
        rows.append(row(i, success or (None if i == 0 else False), own=float(own >= limit),
                        attacked=None if i == 0 else float(last >= limit), **details))  # fmt: skip
    return rows


def test_threshold_curve_against_a_loop() -> None:
    rows = scored(0, 0.4)
    curve = threshold.steps([target(rows, task="nudity", concept=NUDITY)])
    for t in (i / 50 for i in range(50)):
        now = [s for s in curve if s.threshold <= t][-1]
        hit = n = 0
        for r in rows:
            best = max(d.get("highest", 0.0) for d in (r.detail, r.own_detail))
            if best <= t and "error" in r.detail:
                continue
            n, hit = n + 1, hit + (best > t)
        low, high = wilson(hit, n)
        assert (now.asr, now.n, now.unscored) == (pytest.approx(hit / n), n, 10 - n)
        assert (now.low, now.high) == pytest.approx((low, high), abs=1e-12)


def test_the_judge_s_own_threshold_is_stated_or_lies_between_its_verdicts() -> None:
    rows = scored(3, 0.4)
    low, high = threshold.own_threshold([target(rows)])
    every = [d["highest"] for r in rows for d in (r.detail, r.own_detail) if "highest" in d]
    assert low == max(s for s in every if s < 0.4)
    assert high == min(s for s in every if s >= 0.4)
    assert threshold.own_threshold([target(scored(3, 0.4, threshold=0.45))]) == (0.45, 0.45)
    two = [target(scored(3, 0.4, threshold=t)) for t in (0.45, 0.6)]
    assert threshold.own_threshold(two) == (None, None)


@pytest.mark.parametrize(
    ("success", "own", "last", "expected"),
    [
        (False, 0.0, 0.0, (False, False)),
        (True, 1.0, 0.0, (True, False)),
        (True, 0.0, 1.0, (False, True)),
        (None, None, 0.0, (None, False)),
        (True, None, 1.0, (None, True)),
        (True, 0.2, 0.3, (False, True)),  # a task whose judge says yes from a lower score on
    ],
)
def test_verdicts_of_both_images(success, own, last, expected) -> None:
    r = row(0, success, own=own, attacked=last)
    record = target([r])
    assert (verdict.own(record, r), verdict.attacked(record, r)) == expected
    plain = target([r], attack="none")
    assert verdict.own(plain, r) is success


# ---------------------------------------------------------------------------- files
HOSTILE = "e$d_{x}$\x1b[31m<b>"


def every_record() -> list[Record]:
    rows = scored(0, 0.4)
    nudity = {"task": "nudity", "concept": NUDITY}
    return [target(rows, method=m, **nudity) for m in ("none", HOSTILE)] + [
        kept(0.9, m, concept=NUDITY) for m in ("none", HOSTILE)
    ]


@pytest.mark.parametrize("name", ["pareto", "budget", "threshold"])
@pytest.mark.filterwarnings("error")
def test_files_are_the_same_each_time_and_harmless(name: str, tmp_path: Path) -> None:
    files = {}
    for time in range(2):
        drawing, numbers = catalog.from_records(name, every_record(), Wanted())
        for kind in FORMATS:
            path = tmp_path / f"{time}.{kind}"
            drawing.save(path)
            files[time, kind] = path.read_bytes()
    for kind in FORMATS:
        assert files[0, kind] == files[1, kind]
    with Image.open(tmp_path / "0.png") as image:
        assert image.format == "PNG" and image.width > 600
        assert set(image.info) == {"dpi", "Title"}
    svg, pdf = files[0, "svg"].decode(), files[0, "pdf"]
    assert "<script" not in svg and "date" not in svg.lower()
    assert "<text" not in svg  # letters are shapes: no font is needed
    assert b"CreationDate" not in pdf and b"/FontFile2" in pdf
    (head, *lines) = csv.reader(io.StringIO(catalog.csv_of(numbers)))
    assert len(lines) == len(numbers) and head[:2] == ["task", "method"]
    assert {line[1] for line in lines} == {"none", r"e$d_{x}$\x1b[31m<b>"}


def test_texts_are_drawn_as_they_are() -> None:
    drawing, _ = catalog.from_records("pareto", every_record(), Wanted())
    (legend,) = drawing.figure.legends
    texts = {t.get_text(): t for t in legend.get_texts()}
    assert r"e$d_{x}$\x1b[31m<b>" in texts
    assert not any(t.get_parse_math() for t in texts.values())


def test_colour_is_never_alone() -> None:
    pairs = [(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i in range(40)]
    assert len(set(pairs)) == 40


def test_the_command_lists_draws_and_writes_numbers(cli, tmp_path: Path) -> None:
    store = Store(tmp_path / "records")
    for record in every_record():
        store.put(
            replace(record, cell=replace(record.cell, method=Ref(record.cell.method.name[:1])))
        )
    assert cli("figure").out == cli("list", "figures").out
    said = cli("figure", "budget", "--results", "records", "--out", "b.svg", "--data", "b.csv")
    assert (said.code, said.out) == (0, "b.svg: Concept erasing rate by the attacker's budget\n")
    assert Path("b.svg").read_text().startswith("<?xml")
    assert re.match("task,method,attack,unit,budget", Path("b.csv").read_text())
    assert "bench figure budget" in cli("show", "figures", "budget").out
    assert cli("figure", "--json").out == cli("list", "figures", "--json").out
    drawn = json.loads(
        cli("figure", "budget", "--results", "records", "--out", "b.svg", "--json").out
    )
    assert (drawn["file"], drawn["title"]) == ("b.svg", said.out.strip().partition(": ")[2])
    assert len(drawn["numbers"]) == len(Path("b.csv").read_text().splitlines()) - 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("paretto", "--out", "a.png"), "Did you mean 'pareto'"),
        (("pareto",), "expected --out FILE.png"),
        (("pareto", "--out", "a.jpg"), "expected a name that ends in .png, .svg or .pdf"),
        (("budget", "--out", "a.png", "--task", "tench"),
         "run `bench run --method esd --attack unlearndiff --task tench`"),
        (("threshold", "--out", "a.png"), "--attack unlearndiff --task nudity`"),
        (("budget", "--out", "a.png", "--task", "chruch"), "Did you mean 'church'"),
        (("budget", "--out", "a.png", "--method", "essd"), "Did you mean 'esd'"),
        (("budget", "--out", "a.png", "--attack", "nonee"), "Did you mean 'none'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(cli, args: tuple[str, ...], said: str, tmp_path: Path) -> None:
    Store(tmp_path / "records").put(target(hits(2), "none"))
    got = cli("figure", *args, "--results", "records")
    assert (got.code, got.out) == (2, "")
    assert got.err.startswith("error: ") and got.err.count("\n") == 1 and said in got.err
