"""What was learned: the rank of every layer, measured and recorded while training; several seeds read together.

`layers.py` (attention against MLP, variation over layers) needs scipy, `heatmap.py` matplotlib: import them by name.
"""

from lrlora.ranks.measure import LayerRank, Update, layer_ranks, rank_warnings
from lrlora.ranks.record import RankCallback, read_records, record_ranks

__all__ = [
    "LayerRank",
    "RankCallback",
    "Update",
    "layer_ranks",
    "rank_warnings",
    "read_records",
    "record_ranks",
]
