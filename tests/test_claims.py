"""What the paper says, tested on records that are made up here, and on the numbers that it prints."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_comparisons import N, attacked, lines_of
from test_report import result

from bench.core.types import Concept
from bench.plugins.registry import Ref, names
from bench.report.claims import Claim, checked, claims, claims_tables
from bench.report.paper import layout
from bench.store.metrics import rate
from bench.store.record import Record
from bench.tasks.lookup import task_names

REFERENCE = Path(__file__).resolve().parent.parent / "results" / "reference"


def kept(lost: int, method: str) -> Record:
    """Return a record of the task "retain" in which a model that forgot churches loses some prompts."""
    r = result("none", [n >= lost for n in range(N)], method=method)
    cell = replace(r.cell, task="retain", concept=Concept("church", "object"))
    return replace(r, cell=cell, measurements={"accuracy": rate([x.success for x in r.rows])})


def verdicts(records: list[Record]) -> dict[tuple[str, str], str]:
    return {(t.claim.says, t.first.cell.attack.name): t.verdict for t in checked(records)}


ROBUST, KEEPS = "P-ESD is more robust than ESD", "P-ESD keeps as much as ESD"
FMN = "FMN erases less than ESD, attacked or not"


@pytest.mark.parametrize(
    ("esd", "p_esd", "verdict"),
    [(20, 2, "holds"), (2, 20, "opposite"), (9, 4, "not shown"), (3, 2, "same")],
)
def test_a_claim_holds_where_the_test_says_so_in_its_direction(
    esd: int, p_esd: int, verdict: str
) -> None:
    records = [
        attacked("unlearndiff", range(esd)),
        attacked("unlearndiff", range(p_esd), "p-esd"),
    ]
    assert verdicts(records) == {(ROBUST, "unlearndiff"): verdict}
    (test,) = checked(records)
    assert test.difference.value == pytest.approx((esd - p_esd) / N)
    turned = [
        attacked("unlearndiff", range(p_esd), "fmn"),
        attacked("unlearndiff", range(esd)),
    ]  # the claim is that the first is lower
    assert verdicts(turned) == {
        (FMN, "unlearndiff"): {"holds": "opposite", "opposite": "holds"}.get(verdict, verdict)
    }


@pytest.mark.parametrize(
    ("esd", "p_esd", "verdict"), [(2, 2, "holds"), (0, 12, "opposite"), (0, 4, "not shown")]
)
def test_that_something_is_kept_needs_equivalence(esd: int, p_esd: int, verdict: str) -> None:
    assert verdicts([kept(esd, "esd"), kept(p_esd, "p-esd")]) == {(KEEPS, "none"): verdict}


def test_holm_is_over_all_tests_of_claims_that_methods_differ() -> None:
    """Six discordant prompts alone are p = .031; beside a second test they are not enough."""
    pair = [attacked("unlearndiff", range(8)), attacked("unlearndiff", range(2), "p-esd")]
    assert verdicts(pair) == {(ROBUST, "unlearndiff"): "holds"}
    more = [attacked("p4d", range(5)), attacked("p4d", range(4), "p-esd")]
    assert verdicts([*pair, *more])[ROBUST, "unlearndiff"] == "not shown"
    beside = [kept(0, "esd"), kept(12, "p-esd")]  # a family of its own
    assert verdicts([*pair, *beside])[ROBUST, "unlearndiff"] == "holds"


def test_other_prompts_seeds_and_floors_are_not_compared() -> None:
    esd = attacked("unlearndiff", range(20))
    other = attacked("unlearndiff", range(2), "p-esd", seed=1)
    assert not checked([esd, other])
    again = attacked("unlearndiff", range(2), "p-esd")
    both = [esd, again, attacked("unlearndiff", range(20), seed=1), other]
    assert [t.first.cell.seed for t in checked(both)] == [0]
    assert not checked([attacked("random", range(20)), attacked("random", range(2), "p-esd")])


def test_tables_show_counts_rates_floors_and_what_is_missing() -> None:
    records = [
        attacked("unlearndiff", range(20)),
        attacked("unlearndiff", range(1), "p-esd"),
        attacked("unlearndiff", range(0), "never-learned"),
        kept(0, "esd"),
        kept(0, "p-esd"),
    ]
    summary, every = claims_tables(records)
    counts = {line.names[0]: [f and f.value for f in line.figures] for line in summary.lines}
    assert counts[ROBUST] == [1, 0, 0, 0] and counts[KEEPS] == [1, 0, 0, 0]
    assert counts[FMN] == [None] * 4  # a dot, never a zero
    assert summary.notes == (
        f"· no records to test it: {len(claims()) - 2} of {len(claims())} claims",
    )
    first, second, difference, never, verdict = every.lines[0].figures
    assert (first.value, second.value, never.value) == (0.98, 0.6, 1.0)
    assert "equivalent" in first.flags and "equivalent" not in second.flags
    assert difference.value == pytest.approx(0.38) and "differs" in difference.flags
    assert verdict.word == "holds"
    assert any("church" in line and "unlearndiff" in line for line in lines_of(every))
    assert lines_of(summary)


def test_variants_of_a_method_are_told_apart() -> None:
    esd = attacked("unlearndiff", range(20))
    ours = [attacked("unlearndiff", range(n), "p-esd") for n in (2, 3)]
    ours = [
        replace(r, cell=replace(r.cell, method=Ref("p-esd", {"steps": 10 * n})))
        for n, r in enumerate(ours, 1)
    ]
    _, every = claims_tables([esd, *ours])
    assert len({line.names for line in every.lines}) == 2


def test_claims_name_what_there_is_and_are_what_the_paper_prints() -> None:
    """Each claim about rates is true on average of the numbers in the paper's own tables."""
    methods, attacks = names("methods"), names("attacks")
    for claim in claims():
        assert {claim.first, claim.second} <= set(methods) and set(claim.attacks) <= set(attacks)
        assert set(claim.tasks) <= set(task_names("emoji")) | set(task_names("photo"))
    printed = {
        (place.task, place.method, place.attack): value
        for number in (1, 3, 5, 6)  # the last corrects ESD's 0.80 to the 0.60 beside NP-ESD
        for row in layout(number, "photo").rows
        for place, value in zip(row.places, row.published, strict=True)
        if place.measure == "cer"
    }

    def gaps(claim: Claim) -> list[float]:
        ends = (
            [printed.get((task, method, attack)) for method in (claim.first, claim.second)]
            for task in claim.tasks
            for attack in claim.attacks
        )
        return [a - b for a, b in ends if a is not None and b is not None]

    found_in = {c.says: gaps(c) for c in claims() if c.measure == "cer"}
    assert {says for says, found in found_in.items() if not found} == {
        c.says for c in claims() if {"pre-prune", "post-prune"} & {c.first, c.second}
    }  # they are in a figure only
    for claim in claims():
        if found := found_in.get(claim.says):
            assert (sum(found) > 0) == (claim.expect == "higher"), claim.says


def test_the_command_prints_them(cli) -> None:
    said = cli("report", "claims", "--results", str(REFERENCE))
    assert said.code == 0 and "What the paper says" in said.out and ROBUST in said.out
    wrong = cli("report", "claims", "--results", str(REFERENCE), "--table", "1")
    assert wrong.code == 2 and "bench report paper" in wrong.err
