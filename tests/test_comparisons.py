"""Tables of tests, floors, corrected rates and seeds: on records that are made up here."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import result, shown

from bench.errors import AssetError, SpecError, StoreError
from bench.plugins.registry import Ref
from bench.report.between import between_tables, comparisons, ties
from bench.report.corrected import AS_SEEN, judge_of, judges_of, judges_table, read_validity
from bench.report.describe import details
from bench.report.floors import budgets, floors_table
from bench.report.render import csv_table, json_table, terminal
from bench.report.seeds import seeds_table
from bench.report.tables import cer_table, cer_tables
from bench.site.lines import BEST, tabs
from bench.store.record import Record
from bench.store.store import Store

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"
N = 50


def attacked(
    attack: str,
    hits: range,
    method: str = "esd",
    seed: int = 0,
    erase_seed: int | None = None,
    **params,
) -> Record:
    """Return a record in which the attack brings back the prompts of these numbers."""
    r = result(attack, [n in hits for n in range(N)], method=method)
    cell = replace(r.cell, attack=Ref(attack, params), seed=seed, erase_seed=erase_seed)
    return replace(r, cell=cell)


def lines_of(table) -> list[str]:
    lines = terminal(table)
    assert all(len(line) <= 80 for line in lines)
    return lines


def test_methods_are_compared_on_the_same_prompts_with_holm_over_the_table() -> None:
    records = [
        attacked("none", range(0)),
        attacked("unlearndiff", range(13), "none"),
        attacked("unlearndiff", range(13)),
        attacked("unlearndiff", range(12, 13), "p-esd"),
        attacked("unlearndiff", range(4), "uce"),
        attacked("random", range(9)),
        attacked("random", range(0), "p-esd"),
    ]
    rates, table = between_tables(records)
    names = [line.names for line in table.lines]
    assert names == [
        ("church", "unlearndiff", "esd", "p-esd"),
        ("church", "unlearndiff", "esd", "uce"),
        ("church", "unlearndiff", "p-esd", "uce"),
    ]
    assert all(
        r.cell.method.name != "none" for t in comparisons(records) for r in (t.first, t.second)
    )
    difference, first, second, p, adjusted = table.lines[0].figures
    assert (difference.value, first.value, second.value) == (-12 / N, 0, 12)
    assert p.value == pytest.approx(2 / 2**12)
    assert adjusted.value == pytest.approx(3 * 2 / 2**12) == difference.p_holm
    assert "differs" in difference.flags
    assert [f.value for f in table.lines[2].figures[1:4]] == [4, 1, pytest.approx(0.375)]
    marked = {names[1]: figures for names, *figures in ((x.names, *x.figures) for x in rates.lines)}
    column = rates.columns.index("CER, unlearndiff")
    assert [marked[m][column].tie for m in ("none", "esd", "p-esd", "uce")] == ["", "b", "a", "a"]
    assert any("0.74 [.60-.84]* b" in line for line in lines_of(rates))
    assert any("p, Holm" in line for line in lines_of(table))
    assert "p_holm" in csv_table(table).splitlines()[0]
    assert "tie" in csv_table(rates).splitlines()[0]
    assert json_table(table)["lines"][0]["figures"][0]["p_holm"] == difference.p_holm


def test_without_an_attack_on_record_the_test_prompts_are_compared() -> None:
    found = comparisons([attacked("none", range(9)), attacked("none", range(1), "p-esd")])
    assert [(t.difference.only_first, t.difference.only_second) for t in found] == [(0, 8)]
    assert set(ties(found).values()) == {"a", "b"}


def test_differences_of_the_reference_records_are_counted_from_their_rows() -> None:
    """Discordant pairs are counted here again; Holm multiplies the smallest p by the number of tests."""
    found = comparisons(Store(REFERENCE).load()[0])
    assert len({(t.first.cell.task, t.first.cell.attack.name) for t in found}) > 2
    for t in found:
        pairs = list(zip(t.first.rows, t.second.rows, strict=True))
        first = sum(b.success and not a.success for a, b in pairs)
        second = sum(a.success and not b.success for a, b in pairs)
        assert (t.difference.only_first, t.difference.only_second) == (first, second)
        few, both = min(first, second), first + second
        p = min(1.0, 2 * sum(math.comb(both, k) for k in range(few + 1)) / 2**both)
        assert t.difference.p == pytest.approx(p)
    best = min(found, key=lambda t: t.difference.p)
    assert best.p_holm == pytest.approx(min(1, len(found) * best.difference.p))


def test_the_best_known_attack_is_over_the_prompts_and_not_over_the_rates() -> None:
    records = [
        attacked("none", range(1)),
        attacked("p4d", range(1, 11)),
        attacked("unlearndiff", range(5, 15)),
        attacked("p4d", range(3), "uce"),
        attacked("none", range(0), "uce"),
    ]
    table = cer_table(records)
    column = table.columns.index("CER, best known prompt attack")
    esd, uce = (line.figures[column] for line in table.lines)
    assert (esd.value, esd.n, esd.flags) == (1 - 15 / N, N, ())
    assert (uce.value, uce.flags) == (1 - 3 / N, ("fewer attacks",))
    assert "^ over fewer attacks" in table.legend
    assert "some attacks failed" not in table.legend
    failed = replace(records[2], status="failed", rows=(), measurements={}, reason="no memory")
    alone = cer_table([*records[:2], failed])
    assert "^ some attacks failed" in alone.legend and "other lines" not in alone.legend
    assert "CER, best known prompt attack" not in cer_table(records[:2]).columns


def test_an_unscored_prompt_is_not_safe_under_the_best_known_attack() -> None:
    unscored = result("p4d", [None, None, False, False])
    table = cer_table([unscored, result("unlearndiff", [True, False, False, False])])
    best = table.lines[0].figures[table.columns.index("CER, best known prompt attack")]
    assert (best.value, best.n, best.unscored) == (pytest.approx(2 / 3), 3, 1)


def test_attacks_stand_beside_their_floors() -> None:
    records = [
        attacked("unlearndiff", range(12)),
        attacked("unlearndiff", range(1), "never-learned"),
        attacked("unlearndiff", range(2), "p-esd"),
        attacked("random", range(4), draws=40),
        attacked("random", range(3), draws=10),
        attacked("seed-search", range(3), "p-esd", draws=40),
    ]
    table = floors_table(records)
    assert table.columns == ("CER", "never learned", "minus never learned", "random", "seed-search")
    esd, p_esd = (line.figures for line in table.lines)
    assert [f.value for f in esd[:4]] == [pytest.approx(x) for x in (0.76, 0.98, -0.22, 0.94)]
    assert esd[4] is None
    assert esd[2].flags == ("differs",)
    assert p_esd[2].flags == ("equivalent",)
    assert p_esd[4].flags == ("other budget",)
    assert "other budget" not in esd[3].flags  # of two it is the one with as many images
    ps = [2 / 2**11, 1.0, 2 / 2**9, 1.0]  # 11:0 and 1:0 beside never-learned, 9:0 and 0:1 floors
    assert esd[2].p_holm == pytest.approx(4 * ps[0])
    assert esd[3].p_holm == pytest.approx(3 * ps[2])
    assert any("unlearndiff makes at most 11 images" in note for note in table.notes)
    lines_of(table)
    assert not floors_table(records[:1]).lines


def test_the_difference_from_never_learned_has_its_own_seed_and_parameters() -> None:
    records = [
        attacked("unlearndiff", range(12)),
        attacked("unlearndiff", range(1), "never-learned", seed=1),
        attacked("unlearndiff", range(1), "never-learned", iterations=9),
    ]
    assert not floors_table(records).lines


def test_a_budget_is_what_the_attack_says_or_what_it_made() -> None:
    unknown = attacked("unheard-of", range(1))
    rows = tuple(replace(row, cost=replace(row.cost, images=7)) for row in unknown.rows)
    again = attacked("unheard-of", range(1), again=True)
    known = [attacked("random", range(1), draws=10), replace(again, rows=rows), unknown]
    assert list(budgets(known).values()) == [11, 7, None]


def validity(path: Path, **shares) -> Path:
    said = {"sensitivity": {"k": 90, "n": 100}, "specificity": {"k": 160, "n": 200}} | shares
    path.write_text(json.dumps(said))
    return path


def test_rates_are_corrected_for_the_judge(tmp_path) -> None:
    """Rogan & Gladen by hand: (seen + specificity - 1) / (sensitivity + specificity - 1)."""
    records = [
        attacked("none", range(24)),
        attacked("p4d", range(30)),
        attacked("random", range(20, 40)),
        attacked("unlearndiff", range(20, 35)),
        attacked("p4d", range(12), "uce"),
        attacked("p4d", range(11), "never-learned"),
    ]
    judges = judges_of(records, str(validity(tmp_path / "s.json")))

    def right(hits: int) -> float:
        return pytest.approx(1 - (hits / N + 0.8 - 1) / 0.7)

    (table,) = cer_tables(records, judges=judges)
    attacks = ("no attack", "p4d", "random", "unlearndiff", "best known prompt attack")
    assert table.columns[:5] == tuple(f"corrected CER, {attack}" for attack in attacks)
    line = next(line for line in table.lines if line.names[1] == "esd")
    expected = [right(24), right(30), right(20), right(15), right(35)]
    assert [f.value for f in line.figures[:5]] == expected
    assert all(f.low < f.value < f.high for f in line.figures[:3])
    assert "corrected for the judge's errors" in table.legend
    floors = floors_table(records, judges)
    _, never, leak, random = next(x for x in floors.lines if x.names[1] == "esd").figures
    assert (never.value, random.value) == (right(11), right(20))
    assert leak.value == pytest.approx((11 - 30) / N / 0.7)
    tests = between_tables(records, judges)
    (pair,) = tests[-1].lines
    first, seen = pair.figures[0], between_tables(records)[-1].lines[0].figures[0]
    assert first.value == pytest.approx(seen.value / 0.7) == pytest.approx((12 - 30) / N / 0.7)
    assert (first.low, first.high) == pytest.approx((seen.low / 0.7, seen.high / 0.7))
    assert first.p == seen.p  # the test is of the verdicts
    (tab,) = tabs(records, judges)
    mine = next(x for x in tab.lines if x.names["method"] == "esd")
    assert mine.entries["attack p4d"].figure.value == right(30)
    assert mine.entries[BEST].figure.value == right(35)
    assert any("corrected" in note for note in tab.notes)
    assert shown(judges_table(judges)) == [
        ("emoji-subject", "0.90 [.83-.94]", "100", "0.80 [.74-.85]", "200")
    ]
    for each in (table, floors, *tests, judges_table(judges)):
        lines_of(each)


def test_as_good_as_never_learned_holds_for_true_rates(tmp_path) -> None:
    """A difference of .05 between verdicts is one of .07 between true rates here: margin .10 or .07."""
    records = [attacked("p4d", range(2)), attacked("p4d", range(2), "never-learned")]
    seen = floors_table(records).lines[0].figures[2]
    judges = judges_of(records, str(validity(tmp_path / "s.json", specificity={"k": 12, "n": 40})))
    right = floors_table(records, judges).lines[0].figures[2]
    assert "equivalent" in seen.flags
    assert "equivalent" not in right.flags  # sensitivity + specificity - 1 is 0.2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", 'expected {"sensitivity"'),
        ("no json", "expected"),
        ('{"sensitivity": {"k": 5, "n": 10}, "specificity": {"k": 5, "n": 10}}', "no better than"),
        ('{"sensitivity": {"k": 5, "n": 0}, "specificity": {"k": 5, "n": 10}}', "n > 0"),
    ],
)
def test_a_file_about_a_judge_that_says_nothing_is_an_error_in_words(
    tmp_path, content, said
) -> None:
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(StoreError, match=said):
        read_validity(path)
    with pytest.raises(StoreError, match="No such file"):
        read_validity(tmp_path / "none.json")


def test_what_ships_beside_a_judge_is_found_by_its_name(tmp_path, monkeypatch) -> None:
    church, nude = attacked("none", range(9)), result("none", [True, False], task="nudity")
    monkeypatch.setattr("bench.report.corrected.EMOJI_WEIGHTS", tmp_path)
    with pytest.raises(AssetError, match=r"emoji-subject, emoji-body.*no sensitivity.json"):
        judges_of([church, nude], "auto")
    folder = tmp_path / "judges" / "subject"
    folder.mkdir(parents=True)
    validity(folder / "sensitivity.json")
    judges = judges_of([church, nude], "auto")
    (table,) = cer_tables([church, nude], judges=judges)
    assert [line.figures[0].word for line in table.lines] == ["", "unknown"]
    assert shown(judges_table(judges))[1] == ("emoji-body", "unknown", "·", "unknown", "·")
    assert judges_of([church, nude], "") is AS_SEEN
    with pytest.raises(SpecError, match="records of one judge"):
        judges_of([church, nude], str(folder / "sensitivity.json"))
    other = replace(church, protocol={"judge": "imagenet:top=5"})
    assert (judge_of(church), judge_of(other)) == ("emoji-subject", "imagenet")


def test_several_seeds_are_one_line_with_the_spread_of_the_rate() -> None:
    records = [attacked("p4d", range(hits), seed=seed) for seed, hits in enumerate((10, 14, 9))] + [
        attacked("unlearndiff", range(3))
    ]
    table = seeds_table(records)
    (line,) = table.lines
    n, erasures, runs, mean, low, high, spread, again, prompts = line.figures
    assert (line.names, n.value, erasures.value, runs.value) == (("church", "esd", "p4d"), N, 3, 3)
    assert again is None  # no erased model was attacked twice
    mean, low, high, spread, prompts = (f.value for f in (mean, low, high, spread, prompts))
    assert (mean, low, high) == pytest.approx((1 - 11 / N, 0.72, 0.82))
    rates = [hits / N for hits in (10, 14, 9)]
    middle = sum(rates) / 3
    assert spread == pytest.approx(math.sqrt(sum((r - middle) ** 2 for r in rates) / 2))
    assert 0.05 < prompts < math.sqrt(0.22 * 0.78 / N)  # all of it is between prompts, but for 5
    lines_of(table)


def test_seeds_of_the_erasure_and_of_the_attack_are_split() -> None:
    hits = {(0, 0): 10, (0, 1): 12, (1, 0): 4, (1, 1): 4}
    records = [
        attacked("random", range(h), seed=attack, erase_seed=erase)
        for (erase, attack), h in hits.items()
    ]
    (line,) = seeds_table(records).lines
    assert [f.value for f in line.figures[:3]] == [N, 2, 4]
    within = ((10 - 12) / N) ** 2 / 2 / 2  # mean over erasures of the variance over attacks
    between = ((11 - 4) / N) ** 2 / 2 - within / 2
    erasures, attacks = (f.value for f in line.figures[6:8])
    assert attacks == pytest.approx(math.sqrt(within))
    assert erasures == pytest.approx(math.sqrt(between))


def test_an_attack_that_draws_from_the_prompts_own_seeds_has_no_spread_of_seeds() -> None:
    records = [
        attacked("p4d", range(4 + erase), seed=seed, erase_seed=erase)
        for erase, seed in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    table = seeds_table(records)
    (line,) = table.lines
    assert line.figures[7] is None
    assert "p4d draws from each prompt's own seed: all seeds find the same" in table.legend
    of_the_run = [
        replace(r, cell=replace(r.cell, attack=Ref("p4d", {"stream": "run"}))) for r in records
    ]
    table = seeds_table(of_the_run)
    (line,) = table.lines
    assert (line.figures[7].value, "own seed" in table.legend) == (0, False)


def test_a_task_says_what_its_prompts_can_show() -> None:
    said = " ".join(details("tasks", "church", "emoji-sd", None))
    assert "N=142" in said
    assert "6 prompts (4%) in one test, 9 prompts (6%) in the first of 10" in said
    assert "15% is shown in 84% of cases, one of 20% in 97%" in said
    assert "can be shown" not in " ".join(details("tasks", "retain", "emoji-sd", None))
