import math

import numpy
import pytest
from scipy import stats

from lrlora.statistics import mean_interval, paired_difference


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
