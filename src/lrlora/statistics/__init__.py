"""How sure a number is: intervals, paired differences, and what the layers of a model show beyond chance."""

from lrlora.statistics.intervals import Interval, PairedDifference, mean_interval, paired_difference
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
    "Interval",
    "LayerVariation",
    "Measure",
    "PairedDifference",
    "attention_against_mlp",
    "block_pairs",
    "layer_table",
    "layer_variation",
    "mean_interval",
    "paired_difference",
    "value_of",
]
