"""Paired differences: which test is made of them, and what it says."""

import numpy
import pytest

from lrlora.statistics import paired_difference


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
