"""How sure a number is: intervals of means, and paired differences with their tests."""

from lrlora.statistics.differences import (
    SMALLEST_EFFECT,
    SMALLEST_RANK_EFFECT,
    PairedDifference,
    paired_difference,
)
from lrlora.statistics.intervals import Interval, bounds_of, mean_interval

__all__ = [
    "SMALLEST_EFFECT",
    "SMALLEST_RANK_EFFECT",
    "Interval",
    "PairedDifference",
    "bounds_of",
    "mean_interval",
    "paired_difference",
]
