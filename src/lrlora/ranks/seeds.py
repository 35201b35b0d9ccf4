"""The ranks of several runs that differ by their seed, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lrlora.ranks.measure import LayerRank
from lrlora.statistics import mean_interval

MEASURES = (
    "stable_rank", "stable_rank_ba", "stable_rank_initial", "effective_rank", "rms_over_tau", "outside_grid",
    "constant_share", "relative_norm", "c_change", "gate",
)  # fmt: skip
"""What is averaged over seeds."""
_SHARES = ("outside_grid", "constant_share", "gate")


def layer_means(rows_of_seeds: Sequence[Sequence[LayerRank]]) -> list[dict[str, Any]]:
    """For every layer that all seeds have: its names, and an Interval over seeds per measure (None: not measured)."""
    by_name = [{row.layer: row for row in rows} for rows in rows_of_seeds]
    lines = []
    for first in rows_of_seeds[0] if rows_of_seeds else ():
        same = [rows[first.layer] for rows in by_name if first.layer in rows]
        if len(same) < len(by_name):
            continue
        line: dict[str, Any] = {"layer": first.layer, "block": first.block, "kind": first.kind, "module": first.module}
        for name in MEASURES:
            values = [getattr(row, name) for row in same]
            bounds = (0.0, 1.0 if name in _SHARES else math.inf)
            line[name] = None if None in values else mean_interval(values, bounds=bounds)
        lines.append(line)
    return lines
