"""Paired differences with their tests, and from where on a difference is of interest.

scipy is imported where it is used: the base installation does not have it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from lrlora.statistics.intervals import Bounds, check_bounds, check_level, deviation_of, finite, t_interval

SIGN_FLIP_FROM = 6
"""With fewer pairs than this no sign-flip test reaches p < 0.05: its smallest p is 2 / 2^n."""
EXACT_UP_TO = 13
"""Up to so many pairs all 2^n sign flips are looked at, beyond it 9,999 random ones."""
SMALLEST_EFFECT = 0.002
"""Of a metric such as accuracy, and of a loss: two rows of a thousand. Smaller gains are below what test files of some
thousand rows resolve, and below the tenths of a point that methods are told apart by."""
SMALLEST_RANK_EFFECT = 0.05
"""Of a stable rank: what one more singular value of 22 % of the largest adds, 0.22^2 = 0.05."""


@dataclass(frozen=True)
class PairedDifference:
    """The mean of ours - theirs over n pairs, and whether it may be chance.

    Args:
        mean: mean of the differences.
        low: lower end of its interval, None where there is none.
        high: upper end.
        p_value: two-sided, of "no difference"; None where no test is possible.
        effect_size: mean of the differences / their standard deviation (Cohen's d_z); None where that is 0 / 0 or inf.
        n: number of pairs.
        test: how it was tested, in words.
        level: of the interval; a difference can be shown where p_value <= 1 - level.
        smallest_effect: a mean closer to 0 than this is of no interest, however sure it is.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    effect_size: float | None
    n: int
    test: str
    level: float = 0.95
    smallest_effect: float = 0.0

    @property
    def is_sure(self) -> bool:
        """Whether the data contradict "no difference" at this level: the test, and the interval where there is one."""
        excludes_zero = self.low is None or self.high is None or self.low > 0 or self.high < 0
        return self.p_value is not None and self.p_value <= 1 - self.level and excludes_zero

    @property
    def is_shown(self) -> bool:
        """Whether it is sure and at least the smallest effect of interest."""
        # up to the rounding of 0.902 - 0.9
        return self.is_sure and abs(self.mean) >= self.smallest_effect * (1 - 1e-9)

    @property
    def is_too_small(self) -> bool:
        """Whether it is sure, and smaller than the smallest effect of interest."""
        return self.is_sure and not self.is_shown

    def signed(self, digits: int) -> str:
        """The mean with the ends of its interval, where it has one, all with their signs."""
        ends = "" if self.low is None else f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"
        return f"{self.mean:+.{digits}f}{ends}"

    @property
    def chance(self) -> str:
        """The p-value in words, "" where there is none."""
        if self.p_value is None:
            return ""
        return f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else "p < 0.001"

    @property
    def below(self) -> str:
        """What is said of a difference that is too small."""
        return f"smaller than {self.smallest_effect:g}, the smallest effect of interest"

    @property
    def verdict(self) -> str:
        """The result in words."""
        if self.p_value is None:
            return f"nothing can be concluded: {self.test}"
        if self.is_sure:
            small = f", {self.below}" if self.is_too_small else ""
            return f"{'higher' if self.mean > 0 else 'lower'} by {abs(self.mean):.3g} in the mean{small}"
        return "no difference at all" if self.mean == 0 == (self.effect_size or 0) else "no difference shown"


def paired_difference(
    ours: Sequence[float],
    theirs: Sequence[float],
    level: float = 0.95,
    smallest_effect: float = 0.0,
    bounds: Bounds | None = None,
) -> PairedDifference:
    """ours - theirs over pairs (the same seed, the same task), tested: paired t below 6 pairs, sign flips from 6 on.

    The sign-flip test assumes only that a difference is as likely to be turned around: exact for up to 13 pairs, beyond
    it with 9,999 random flips of a fixed seed. Its interval holds every shift that the test does not refuse:
    interval and p-value agree (Hartigan's typical values, 1969: its ends are means of subsets of the differences).
    Below 6 pairs no sign-flip test reaches p < 0.05; the t test can, but trusts that differences are normal. Below
    2 pairs there is no test. Where all differences are the same, t knows no deviation, and flips test at any n.

    Args:
        ours: values of one arm.
        theirs: values of the other, in the same order.
        level: of the interval, in (0, 1).
        smallest_effect: a difference is shown where it is sure and at least this large, in the unit of the values;
            `SMALLEST_EFFECT` for metrics, `SMALLEST_RANK_EFFECT` for stable ranks. 0: however small.
        bounds: lowest and highest possible value; the interval of a difference ends where two such values can not
            be further apart.

    Raises:
        ValueError: not as many values on both sides, one that is NaN or inf or out of bounds, or a smallest effect
            below 0.

    Example:
        >>> paired_difference([0.81, 0.84, 0.83], [0.80, 0.84, 0.81]).verdict
        'no difference shown'
    """
    difference = difference_of(ours, theirs, level)
    for side in (ours, theirs):
        check_bounds(numpy.asarray(side, dtype=float), bounds)
    n = len(difference)
    if n < 2:
        return untested(difference, level, f"a test needs 2 pairs or more, there {are(n)}", smallest_effect)
    if n >= SIGN_FLIP_FROM or deviation_of(difference) == 0:
        return sign_flip(difference, level, smallest_effect)
    from scipy import stats

    found: Any = stats.ttest_1samp(difference, 0)
    reach = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    low, high = t_interval(difference, level, reach)
    return _paired(difference, low, high, float(found.pvalue), "paired t test", level, smallest_effect)


def sign_flip(difference: Any, level: float, smallest_effect: float = 0.0) -> PairedDifference:
    """Test differences by turning their signs around."""
    from scipy import stats

    n = len(difference)
    is_exact = n <= EXACT_UP_TO
    generator = numpy.random.default_rng(0)
    found = stats.permutation_test(
        (difference,),
        lambda x, axis: numpy.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=int(2**n) if is_exact else 9999,
        rng=generator,
    )
    subsets = (
        numpy.array(list(itertools.product((0, 1), repeat=n)), dtype=float)
        if is_exact
        else generator.integers(0, 2, (9999, n)).astype(float)
    )
    sizes = subsets.sum(axis=1)
    means = numpy.sort(subsets[sizes > 0] @ difference / sizes[sizes > 0])
    # the flip of nothing counts as one, so the k-th smallest mean is the first shift whose p is above (1 - level) / 2
    k = math.floor((1 - level) / 2 * (len(means) + 1))
    low, high = (float(means[k - 1]), float(means[-k])) if k else (None, None)
    name = "exact sign-flip test" if is_exact else "sign-flip test, 9,999 random flips"
    return _paired(difference, low, high, float(found.pvalue), name, level, smallest_effect)


def _paired(
    difference: Any,
    low: float | None,
    high: float | None,
    p_value: float | None,
    test: str,
    level: float,
    smallest_effect: float,
) -> PairedDifference:
    if not (smallest_effect >= 0 and math.isfinite(smallest_effect)):
        raise ValueError(f"smallest_effect must be a number of at least 0, got {smallest_effect}")
    n = len(difference)
    mean = float(difference.mean()) if n else math.nan
    deviation = deviation_of(difference)
    effect = mean / deviation if deviation > 0 else (0.0 if mean == 0 else None)
    return PairedDifference(mean, low, high, p_value, effect, n, test, level, smallest_effect)


def untested(difference: Any, level: float, reason: str, smallest_effect: float = 0.0) -> PairedDifference:
    """Only the mean, with the reason why there is no test."""
    return _paired(difference, None, None, None, reason, level, smallest_effect)


def difference_of(ours: Sequence[float], theirs: Sequence[float], level: float) -> Any:
    """The differences of pairs; raises ValueError where there is no pairing."""
    check_level(level)
    if len(ours) != len(theirs):
        raise ValueError(f"pairs need as many values on both sides, got {len(ours)} and {len(theirs)}")
    return finite(ours) - finite(theirs)


def are(n: int) -> str:
    """Words for a number of things that there are."""
    return "is 1" if n == 1 else f"are {n or 'none'}"
