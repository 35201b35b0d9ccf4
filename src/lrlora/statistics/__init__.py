"""How sure a number is: intervals, paired differences, and what the layers of a model show beyond chance."""

from lrlora.statistics.differences import (
    SMALLEST_EFFECT,
    SMALLEST_RANK_EFFECT,
    PairedDifference,
    paired_difference,
)
from lrlora.statistics.intervals import Interval, bounds_of, mean_interval
from lrlora.statistics.layers import (
    LayerVariation,
    Measure,
    attention_against_mlp,
    block_pairs,
    layer_table,
    layer_variation,
    value_of,
)

__all__ = [
    "SMALLEST_EFFECT",
    "SMALLEST_RANK_EFFECT",
    "Interval",
    "LayerVariation",
    "Measure",
    "PairedDifference",
    "attention_against_mlp",
    "block_pairs",
    "bounds_of",
    "layer_table",
    "layer_variation",
    "mean_interval",
    "paired_difference",
    "value_of",
]
