"""Statistics against the package errorbars, and against brute force where it has nothing of the kind."""

import math
from dataclasses import replace
from itertools import combinations, product

import errorbars.compare
import errorbars.leaderboard
import errorbars.power
import numpy as np
import pytest
from scipy.stats import binom, multinomial, norm
from test_report import result

from bench.errors import StoreError
from bench.report.statistics import (
    Difference,
    Share,
    best_known,
    by_stage,
    corrected,
    detectable,
    equivalent,
    holm,
    letters,
    paired,
    paired_interval,
    power,
    tie_groups,
    union,
)
from bench.store.metrics import Measurement, rate


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    counts = (both, first, second, neither)
    cells = [(True, True), (True, False), (False, True), (False, False)]
    pairs = [cell for cell, n in zip(cells, counts, strict=True) for _ in range(n)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_holm_is_that_of_errorbars() -> None:
    draws = np.random.default_rng(0)
    for n in (0, 1, 2, 7, 40):
        ps = draws.uniform(0, 0.2, n).round(2).tolist()  # with ties
        assert holm(ps) == pytest.approx(errorbars.leaderboard.holm_correction(ps))


def test_a_difference_and_its_p_are_those_of_errorbars() -> None:
    draws = np.random.default_rng(1)
    for n in (5, 50, 142):
        a, b = draws.random(n) < 0.4, draws.random(n) < 0.6
        expected = errorbars.compare.paired_compare(a, b)
        found = paired(a.tolist(), b.tolist())
        assert (found.value, found.p) == pytest.approx(
            (expected.mean_diff, expected.mcnemar.p_value)
        )
        assert (found.only_first, found.only_second) == (expected.mcnemar.n10, expected.mcnemar.n01)


def score(b: int, c: int, n: int, delta: float) -> float:
    """Tango's statistic with its nuisance parameter by brute force: the likeliest on a fine grid."""
    q = np.linspace(max(0.0, -delta), (1 - delta) / 2, 400_001)
    cells = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
    likely = sum(k * np.log(np.maximum(p, 1e-300)) for k, p in cells if k)
    best = q[np.argmax(likely)]
    return (b - c - n * delta) / math.sqrt(n * max(1e-300, 2 * best + delta - delta**2))


@pytest.mark.parametrize("cell", [(12, 2, 50), (0, 0, 20), (6, 0, 50), (0, 9, 12), (7, 7, 30)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_is_the_inverted_score_test(cell, confidence) -> None:
    low, high = paired_interval(*cell, confidence)
    z = norm.ppf(0.5 + confidence / 2)
    assert score(*cell, low) == pytest.approx(z, abs=2e-3)
    assert score(*cell, high) == pytest.approx(-z, abs=2e-3)


def test_without_a_discordant_pair_the_interval_is_not_empty() -> None:
    found = paired([True] * 25 + [False] * 25, [True] * 25 + [False] * 25)
    width = 1.959964**2 / (50 + 1.959964**2)
    assert (found.value, found.p) == (0.0, 1.0)
    assert (found.low, found.high) == pytest.approx((-width, width), abs=1e-6)
    assert paired_interval(20, 0, 20)[1] == 1.0
    assert paired_interval(0, 20, 20)[0] == -1.0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Exact coverage: over all tables of 30 prompts, for some true shares."""
    n = 30
    tables = [(first, second) for first in range(n + 1) for second in range(n + 1 - first)]
    for first, second in ((0.2, 0.05), (0.1, 0.1), (0.3, 0.2)):
        cells = [(*table, n - sum(table)) for table in tables]
        chances = multinomial.pmf(cells, n, (first, second, 1 - first - second))
        held = 0.0
        for table, chance in zip(tables, chances, strict=True):
            if chance > 1e-5:
                low, high = paired_interval(*table, n)
                held += chance * (low <= first - second <= high)
        assert 0.93 < held < 0.98


def test_what_is_unscored_leaves_its_pair_out() -> None:
    found = paired([True, None, False, True], [False, True, None, True])
    assert (found.n, found.value) == (2, 0.5)
    assert paired([None], [True]) is None
    assert not equivalent(None)


def test_no_difference_found_is_not_equivalence() -> None:
    few = paired([False] * 20, [False] * 20)
    many = paired([False] * 50, [False] * 50)
    assert few.p == many.p == 1.0
    assert not equivalent(few)  # 90 %: +-2.706 / 22.7 = .119
    assert equivalent(many)  # +-.051
    assert not equivalent(many, margin=0.05)
    assert not equivalent(paired(*outcomes(0, 6, 0, 136)), margin=0.05)


def test_tie_groups_are_the_cliques_of_errorbars() -> None:
    draws = np.random.default_rng(3)
    level = draws.random(142)
    shares = {"c": 0.29, "a": 0.2, "b": 0.24, "d": 0.5, "e": 0.53, "f": 0.9}
    runs = {
        name: (level + draws.normal(0, 0.1, 142) < share).tolist() for name, share in shares.items()
    }
    pairs = list(combinations(runs, 2))
    ps = [errorbars.compare.mcnemar_exact(runs[a], runs[b]).p_value for a, b in pairs]
    adjusted = errorbars.leaderboard.holm_correction(ps)
    edges = {frozenset(pair) for pair, p in zip(pairs, adjusted, strict=True) if p >= 0.05}
    expected = set(map(frozenset, errorbars.leaderboard._maximal_cliques(list(runs), edges)))
    found = tie_groups(runs)
    named = {letter for text in found.values() for letter in text}
    assert {frozenset(n for n in runs if letter in found[n]) for letter in named} == expected
    assert "a" in found["a"]
    assert len(expected) > 2


def test_letters_are_shared_exactly_by_names_that_are_not_apart() -> None:
    names = list("stuvwxyz")
    draws = np.random.default_rng(4)
    for share in (0.0, 0.2, 0.5, 0.9, 1.0):
        apart = [pair for pair in combinations(names, 2) if draws.random() < share]
        found = letters(names, apart)
        for pair in combinations(names, 2):
            assert bool(set(found[pair[0]]) & set(found[pair[1]])) == (pair not in apart)
        assert all(found.values())
    assert set(letters(names, []).values()) == {"a"}


def test_what_can_be_detected() -> None:
    assert detectable(50) == (6, 0.12)
    assert detectable(50, tests=10) == (9, 0.18)
    assert detectable(142).share == pytest.approx(6 / 142)
    assert detectable(5) is None
    for k, tests in ((6, 1), (9, 10)):
        assert paired(*outcomes(0, k, 0, 50 - k)).p * tests < 0.05
        assert paired(*outcomes(0, k - 1, 0, 51 - k)).p * tests >= 0.05


def test_power_by_simulation_and_near_that_of_errorbars() -> None:
    draws = np.random.default_rng(5)
    u = draws.random((20_000, 50))
    first, second = (u < 0.25).sum(1), ((u >= 0.25) & (u < 0.35)).sum(1)
    shown = 2 * binom.cdf(np.minimum(first, second), first + second, 0.5) < 0.05
    assert power(50, 0.15) == pytest.approx(shown.mean(), abs=0.01)
    assert power(142, 0.15) == pytest.approx(0.86, abs=0.02)
    assert power(142, 0.20) == pytest.approx(0.97, abs=0.01)
    # the normal approximation: the variance of a paired difference is .35 - .15², that is 2 V (1 - rho)
    gap = errorbars.power.minimum_detectable_effect(
        400, variance=(0.35 - 0.15**2) / 2, power=power(400, 0.15)
    )
    assert gap == pytest.approx(0.15, abs=0.015)
    assert power(50, 0.15, tests=10) < power(50, 0.15)
    with pytest.raises(ValueError, match="at most 1"):
        power(50, 0.9, back=0.2)


def test_a_corrected_rate_is_the_truth() -> None:
    """The judge sees 90 % of what is there, and 20 % of what is not: .3 true gives .41 seen."""
    seen = rate([True] * 410 + [False] * 590)
    found = corrected(seen, Share(900, 1000), Share(800, 1000))
    assert found.value == pytest.approx(0.3)
    assert found.low < 0.3 < found.high
    assert found.high - found.low > (seen.high - seen.low) / 0.7  # wider: the judge's own N counts
    assert corrected(rate([None]), Share(9, 10), Share(9, 10)).value is None
    nothing = corrected(rate([False] * 50), Share(90, 100), Share(80, 100))
    assert (nothing.value, nothing.low) == (0.0, 0.0)


def test_a_corrected_interval_holds_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(6)
    for true, se, sp in ((0.05, 0.9, 0.95), (0.5, 0.8, 0.9), (0.95, 0.97, 0.9)):
        held = 0
        for _ in range(800):
            k = draws.binomial(50, true * se + (1 - true) * (1 - sp))
            judge = [Share(int(draws.binomial(100, q)), 100) for q in (se, sp)]
            m = corrected(Measurement(k / 50, 50), *judge)
            held += m.low <= true <= m.high
        assert held / 800 > 0.93


@pytest.mark.parametrize(
    "judge", [((5, 10), (5, 10)), ((0, 0), (5, 5)), ((11, 10), (9, 10)), ((-1, 10), (10, 10))]
)
def test_a_judge_that_is_no_better_than_chance_corrects_nothing(judge) -> None:
    with pytest.raises(StoreError, match="expected"):
        corrected(rate([True, False]), *(Share(*share) for share in judge))


def test_the_best_known_attack_on_each_prompt() -> None:
    records = [
        result("none", [False, False, False, None]),
        result("p4d", [True, False, None, False]),
        result("unlearndiff", [True, True, False, False]),
    ]
    found = best_known(records)
    assert [best.success for best in found] == [True, True, None, None]
    assert found[0].by == ("p4d", "unlearndiff")
    assert best_known([]) == []
    with pytest.raises(StoreError, match="expected records of the same prompts"):
        best_known([records[0], result("p4d", [True])])


def test_an_attack_in_two_variants_is_unknown_where_one_of_them_is() -> None:
    for outcomes in ([None, False], [False, None]):
        (best,) = best_known([result("p4d", [outcome]) for outcome in outcomes])
        assert best.success is None
    (best,) = best_known([result("p4d", [True]), result("p4d", [True])])
    assert best.success is True and best.by == ("p4d",)


def test_floors_and_attacks_beyond_the_prompt_do_not_count_for_the_best_known() -> None:
    left_out = [
        result("random", [True, True]),
        replace(result("seed-search", [True, True]), space="latent"),
        replace(result("relearn", [True, True]), space="weights"),
    ]
    plain = result("none", [False, False])
    assert best_known([plain, *left_out]) == []
    found = best_known([plain, *left_out, result("p4d", [True, False])])
    assert [best.success for best in found] == [True, False]
    assert [best.success for best in union([plain, *left_out])] == [True, True]


def test_variance_by_stage_is_unbiased() -> None:
    """Numbers drawn from a known model: mean estimates over 600 draws are the model's own variances."""
    draws = np.random.default_rng(7)
    e, a, n, found = 4, 3, 20, []
    of = {"E": 0.3, "A": 0.2, "P": 1.0, "EP": 0.5, "rest": 0.7}  # standard deviations
    for _ in range(600):
        y = (
            10
            + draws.normal(0, of["E"], (e, 1, 1))
            + draws.normal(0, of["A"], (e, a, 1))
            + draws.normal(0, of["P"], (1, 1, n))
            + draws.normal(0, of["EP"], (e, 1, n))
            + draws.normal(0, of["rest"], (e, a, n))
        )
        found.append(by_stage({(i, j): y[i, j].tolist() for i in range(e) for j in range(a)}))
    assert np.mean([s.rate for s in found]) == pytest.approx(10, abs=0.05)
    truth = (
        of["E"] ** 2 + of["EP"] ** 2 / n,
        of["A"] ** 2 + of["rest"] ** 2 / n,
        of["P"] ** 2 / n,
    )
    means = [
        np.mean([getattr(s, stage) for s in found]) for stage in ("erase", "attack", "prompts")
    ]
    assert means == pytest.approx(truth, rel=0.1)


def test_variance_by_stage_says_what_it_cannot_split() -> None:
    runs = {(e, a): [True, False, e == a, True] for e, a in product(range(2), range(2))}
    assert by_stage({(0, 0): [True, False]}) is None
    one_erasure = by_stage({key: y for key, y in runs.items() if key[0] == 0})
    assert (one_erasure.erase, one_erasure.runs) == (None, (2,))
    one_attack = by_stage({key: y for key, y in runs.items() if key[1] == 0})
    assert (one_attack.attack, one_attack.runs) == (None, (1, 1))
    assert one_attack.erase == pytest.approx(np.var([0.75, 0.5], ddof=1))
    unscored = by_stage({(0, 0): [True, None, False, True], (1, 0): [True, True, False, False]})
    assert unscored.n == 3


def test_a_difference_is_data() -> None:
    found = paired(*outcomes(3, 12, 1, 34))
    assert found == Difference(0.22, found.low, found.high, 50, found.p, 12, 1)
    assert found.p == pytest.approx(2 * sum(math.comb(13, k) for k in (0, 1)) / 2**13)
