import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from bench import Score
from bench.store.metrics import any_of, complement, mcnemar, mean, rate


def test_rate_is_wilson_and_leaves_unscored_out() -> None:
    m = rate([True] * 8 + [False] * 2 + [None])
    z, p, n = 1.959963984540054, 0.8, 10
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (m.value, m.n, m.unscored) == (0.8, 10, 1)
    assert (m.low, m.high) == pytest.approx((middle - half, middle + half), abs=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 50), (50, 50), (3, 142), (15_000, 30_000)])
def test_the_interval_of_a_rate_is_that_of_scipy(k: int, n: int) -> None:
    interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    m = rate([True] * k + [False] * (n - k))
    assert (m.low, m.high) == pytest.approx((interval.low, interval.high), abs=1e-14)


def test_any_of_three_values() -> None:
    for values in product((True, False, None), repeat=3):
        expected = True if True in values else None if None in values else False
        assert any_of(values) is expected


def test_an_interval_holds_its_rate_to_the_last_bit() -> None:
    for n in range(1, 300):
        for hits in {0, 1, n // 2, n - 1, n}:
            m = rate([True] * hits + [False] * (n - hits))
            for each in (m, complement(m)):
                assert 0 <= each.low <= each.value <= each.high <= 1


def test_nothing_scored_is_no_rate() -> None:
    assert rate([None, None]).value is None
    assert rate([None, None]).unscored == 2
    assert mean([Score(None)]).value is None


def test_complement_swaps_the_bounds() -> None:
    m = rate([True, False, False, False])
    c = complement(m)
    assert c.value == 0.75
    assert (c.low, c.high) == pytest.approx((1 - m.high, 1 - m.low))


def test_mcnemar_against_the_binomial_sum() -> None:
    first = [True] * 9 + [False] * 1 + [True] * 5
    second = [False] * 9 + [True] * 1 + [True] * 5
    tail = sum(math.comb(10, k) for k in (0, 1)) / 2**10
    assert mcnemar(first, second) == pytest.approx(2 * tail)
    assert mcnemar(first, first) == 1.0


def test_the_interval_of_two_is_students() -> None:
    """With one degree of freedom the 97.5 % quantile is tan(0.475 pi) = 12.706."""
    m = mean([Score(1.0), Score(3.0), Score(None)])
    assert (m.value, m.n, m.unscored) == (2.0, 2, 1)
    half = math.tan(0.475 * math.pi) * math.sqrt(2) / math.sqrt(2)
    assert (m.low, m.high) == pytest.approx((2.0 - half, 2.0 + half))


@pytest.mark.parametrize("n", [2, 3, 10, 500])
def test_mean_interval_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    expected = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
    m = mean([Score(float(v)) for v in values])
    assert (m.low, m.high) == pytest.approx(expected, rel=1e-9)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Of 4000 means of three draws, 95 % of the intervals hold the truth; with z it were 81 %."""
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    found = [mean([Score(float(v)) for v in row]) for row in draws]
    share = sum(m.low < 0 < m.high for m in found) / len(found)
    assert share == pytest.approx(0.95, abs=0.015)


def test_a_score_that_is_not_finite_is_unscored() -> None:
    scores = [Score(1.0), Score(math.nan), Score(3.0), Score(math.inf), Score(None)]
    assert mean(scores) == replace(mean([Score(1.0), Score(3.0)]), unscored=3)


def test_one_value_has_no_interval() -> None:
    m = mean([Score(2.0)])
    assert (m.value, m.n, m.low, m.high) == (2.0, 1, None, None)


def test_the_calibration_rule() -> None:
    from bench.emoji.recipe.calibrate import choose

    assert choose([("a", 0.95, 0.90), ("b", 0.99, 0.97), ("c", 0.91, 0.97), ("d", 1.0, 0.2)]) == "b"
    assert choose([("a", 0.50, 0.99), ("b", 0.80, 0.86), ("c", 0.85, 0.84)]) == "b"
    assert not choose([("a", 1.0, 0.1)])
