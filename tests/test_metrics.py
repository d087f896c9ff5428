import math

import pytest

from bench import Score
from bench.metrics import complement, mcnemar, mean, rate


def test_rate_is_wilson_and_leaves_unscored_out() -> None:
    m = rate([True] * 8 + [False] * 2 + [None])
    z, p, n = 1.959963984540054, 0.8, 10
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (m.value, m.n, m.unscored) == (0.8, 10, 1)
    assert (m.low, m.high) == pytest.approx((middle - half, middle + half), abs=1e-9)


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


def test_mean_interval() -> None:
    m = mean([Score(1.0), Score(3.0), Score(None)])
    assert (m.value, m.n, m.unscored) == (2.0, 2, 1)
    assert m.high - m.value == pytest.approx(1.959963984540054 * math.sqrt(2) / math.sqrt(2))


def test_the_calibration_rule() -> None:
    from bench.emoji.calibrate import choose

    assert choose([("a", 0.95, 0.90), ("b", 0.99, 0.97), ("c", 0.91, 0.97), ("d", 1.0, 0.2)]) == "b"
    assert choose([("a", 0.50, 0.99), ("b", 0.80, 0.86), ("c", 0.85, 0.84)]) == "b"
    assert not choose([("a", 1.0, 0.1)])
