import math

import numpy
import pytest
from scipy import stats

from lrlora.statistics import bounds_of, mean_interval, paired_difference


def test_a_mean_of_three_has_the_t_interval():
    x = [0.81, 0.84, 0.83]
    found = mean_interval(x)
    low, high = stats.t.interval(0.95, 2, loc=numpy.mean(x), scale=stats.sem(x))
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((numpy.mean(x), low, high, 3))


def test_too_few_values_have_a_mean_and_no_interval():
    for n in (1, 2):
        found = mean_interval([1.0] * n)
        assert (found.mean, found.low, found.high, found.n) == (1.0, None, None, n)
    assert math.isnan(mean_interval([]).mean)
    with pytest.raises(ValueError, match="level must be in"):
        mean_interval([1, 2, 3], level=95)


def test_the_same_value_every_time_has_an_interval_of_no_width():
    found = mean_interval([2.0] * 25)
    assert (found.low, found.high) == (2.0, 2.0)


@pytest.mark.parametrize("n", [3, 6, 25])
def test_an_interval_holds_the_true_mean_as_often_as_it_says(n):
    generator = numpy.random.default_rng(n)
    draws = 300
    held = 0
    for _ in range(draws):
        found = mean_interval(generator.normal(size=n))
        assert found.low is not None and found.high is not None
        held += found.low <= 0 <= found.high
    # BCa of 25 values holds about 0.92; three deviations of a binomial below that
    assert held / draws >= (0.95 if n < 20 else 0.92) - 3 * math.sqrt(0.05 * 0.95 / draws)


def test_a_value_that_is_not_finite_is_refused():
    for call in (lambda: mean_interval([1.0, math.nan]), lambda: paired_difference([1.0, math.inf], [0.0, 0.0])):
        with pytest.raises(ValueError, match="leave diverged runs out"):
            call()


@pytest.mark.parametrize(
    ("values", "metric", "low", "high"),
    [
        ([0.10, 0.02, 0.30], "accuracy", 0.0, 0.499),
        ([0.99, 1.00, 0.90], "f1", 0.826, 1.0),
        ([1.0, 1.0, 1.0], "accuracy", 1.0, 1.0),
        ([0.0, 0.0, 0.0, 0.0], "accuracy", 0.0, 0.0),
        ([0.0, 1.0, 0.0, 1.0], "accuracy", 0.0, 1.0),
        ([-0.9, -0.5, -1.0], "matthews", -1.0, -0.143),
        ([0.99, 0.5, 1.0000000000000002], "pearson", 0.120, 1.0),
        ([0.1, 0.9, 0.2], "loss", 0.0, 1.483),
        ([-3.0, 3.0, 0.1], "anything else", -7.420, 7.487),
    ],
)
def test_an_interval_ends_where_its_metric_ends(values, metric, low, high):
    found = mean_interval(values, bounds=bounds_of(metric))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)
    assert found.mean == pytest.approx(numpy.mean(values))
    free = mean_interval(values)
    assert free.low is not None and free.high is not None
    lowest, highest = bounds_of(metric) or (-math.inf, math.inf)
    assert (found.low, found.high) == (max(free.low, lowest), min(free.high, highest))


def test_two_bounded_values_have_no_interval_and_those_out_of_bounds_no_mean():
    assert mean_interval([0.0, 1.0], bounds=(0, 1)).low is None
    with pytest.raises(ValueError, match=r"values must be in \[0, 1\], got 0.5 to 81"):
        mean_interval([81.0, 0.5, 0.7], bounds=(0, 1))
    with pytest.raises(ValueError, match=r"values must be in \[0, 1\]"):
        paired_difference([81.0, 80.0], [0.5, 0.7], bounds=(0, 1))
