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


def test_few_pairs_are_tested_by_t_and_more_by_sign_flips():
    generator = numpy.random.default_rng(0)
    few = paired_difference(generator.normal(1, 1, 5), numpy.zeros(5))
    more = paired_difference(generator.normal(1, 1, 8), numpy.zeros(8))
    many = paired_difference(generator.normal(1, 1, 40), numpy.zeros(40))
    assert few.test == "paired t test"
    assert more.test == "exact sign-flip test"
    assert "random flips" in many.test
    assert many.is_shown and many.verdict.startswith("higher by")


def test_the_sign_flip_test_counts_all_flips():
    x = numpy.array([0.5, 1.0, -0.2, 0.7, 0.9, 0.3, 1.1])
    signs = numpy.array(numpy.meshgrid(*[(-1, 1)] * 7)).reshape(7, -1).T
    by_hand = ((signs * x).mean(axis=1) >= x.mean() - 1e-12).mean() * 2
    assert paired_difference(x, numpy.zeros(7)).p_value == pytest.approx(by_hand)


@pytest.mark.parametrize("n", [6, 9, 30])
def test_the_interval_and_the_p_value_of_sign_flips_agree(n):
    generator = numpy.random.default_rng(n)
    for _ in range(10):
        x = generator.normal(0.5, 1, n)
        found = paired_difference(x, numpy.zeros(n))
        assert found.low is not None and found.high is not None
        within, beyond = found.low + 0.1, found.low - 0.1
        assert paired_difference(x, numpy.full(n, beyond)).is_shown
        assert not paired_difference(x, numpy.full(n, within)).is_shown


def test_the_effect_size_is_the_mean_over_the_deviation():
    found = paired_difference([3.0, 5.0, 4.0], [1.0, 1.0, 1.0])
    assert found.effect_size == pytest.approx(3.0)


def test_constant_differences():
    same = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.mean, same.p_value, same.effect_size, same.verdict) == (0.0, 1.0, 0.0, "no difference at all")
    shifted = paired_difference([2.0, 3.0, 4.0], [1.0, 2.0, 3.0])
    # three equal signs come by chance one time in four
    assert (shifted.p_value, shifted.effect_size, shifted.verdict) == (0.25, None, "no difference shown")
    # 0.9 - 0.8 and 0.8 - 0.7 are not the same in floating point
    assert paired_difference([0.9, 0.8, 0.7], [0.8, 0.7, 0.6]).p_value == 0.25
    assert paired_difference([2.0] * 8, [1.0] * 8).is_shown


def test_one_pair_says_nothing():
    found = paired_difference([1.0], [0.0])
    assert (found.p_value, found.low, found.effect_size) == (None, None, None)
    assert found.verdict == "nothing can be concluded: a test needs 2 pairs or more, there is 1"
    assert paired_difference([], []).n == 0
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])


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


def test_a_difference_may_be_negative_and_no_larger_than_its_metric_allows():
    found = paired_difference([0.5, 0.1], [0.6, 0.9], bounds=(0, 1))
    assert (found.mean, found.low, found.high) == pytest.approx((-0.45, -1.0, 1.0))
    free = paired_difference([0.5, 0.1], [0.6, 0.9])
    assert free.low is not None and free.low < -1


def test_what_is_smaller_than_the_smallest_effect_is_not_shown():
    ours, theirs = [0.8011, 0.8212, 0.8111, 0.8312], [0.8, 0.82, 0.81, 0.83]
    assert paired_difference(ours, theirs).is_shown
    found = paired_difference(ours, theirs, smallest_effect=0.002)
    assert found.p_value is not None and found.p_value < 0.001
    assert (found.is_sure, found.is_shown, found.is_too_small) == (True, False, True)
    assert found.verdict == "higher by 0.00115 in the mean, smaller than 0.002, the smallest effect of interest"
    # as large as it: shown, whatever 0.802 - 0.8 is in floating point
    even = paired_difference([0.802, 0.822, 0.812] * 3, [0.8, 0.82, 0.81] * 3, smallest_effect=0.002)
    assert even.is_shown
    unsure = paired_difference([0.80, 0.84], [0.801, 0.83], smallest_effect=0.1)
    assert (unsure.is_too_small, unsure.verdict) == (False, "no difference shown")
    with pytest.raises(ValueError, match="smallest_effect must be a number of at least 0"):
        paired_difference([1.0, 2.0], [1.0, 2.0], smallest_effect=-1)
