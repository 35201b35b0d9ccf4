"""What several runs of one experiment, which differ by their seed, show together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrlora.errors import InputError
from lrlora.ranks import LayerRank
from lrlora.ranks.layers import LayerVariation, attention_against_mlp, layer_variation
from lrlora.ranks.measure import UNMOVED
from lrlora.ranks.seeds import layer_means
from lrlora.saved.results import Run
from lrlora.statistics import (
    SMALLEST_EFFECT,
    Interval,
    PairedDifference,
    bounds_of,
    mean_interval,
    paired_difference,
)
from lrlora.training.config import FREE


@dataclass(frozen=True)
class Findings:
    """What runs of one experiment, which differ by their seed, show together.

    Args:
        rows_of_seeds: the ranks of every run.
        variation: of the layers, against both baselines (nulls).
        kinds: attention - MLP of "stable_rank", of its null "stable_rank_ba", and of "beyond_lora", their difference.
        table: for every layer its names and, per measure, the Interval over seeds or None.
        mixed: settings other than the seed in which the runs differ, in words.
        warnings: of all runs.
        is_frozen: no coefficient of any layer moved, or phi has none: there is no learned rank.
        metric: name of the task's metric, "" where the runs have none.
        ours: the metric over seeds; None where there is none.
        against_lora: paired with plain LoRA of the same seeds; None where it was not trained.
    """

    rows_of_seeds: list[list[LayerRank]]
    variation: LayerVariation
    kinds: dict[str, PairedDifference]
    table: list[dict[str, Any]]
    mixed: list[str]
    warnings: list[str]
    is_frozen: bool
    metric: str
    ours: Interval | None
    against_lora: PairedDifference | None

    @property
    def seeds(self) -> int:
        """Number of runs."""
        return len(self.rows_of_seeds)

    @property
    def beyond(self) -> str:
        """Whether a rank beyond LoRA's was learned, in words."""
        if self.is_frozen:
            return "no learned rank beyond LoRA's: phi is the one that training started with"
        first, second = self.variation.against_ba, self.variation.against_initial
        if not (first.is_shown and first.mean > 0):
            return f"no learned rank beyond LoRA's: against SR(BA), {first.verdict}"
        if second is None:
            return f"above LoRA's null: SR(dW) is {first.verdict}; the untrained phi was not measured"
        if second.is_shown and second.mean > 0:
            where = "yes, in this run" if self.seeds == 1 else "yes"
            return f"{where}: {first.verdict} than SR(BA), and {second.verdict} than with an untrained phi"
        return (
            f"above SR(BA), but not above an untrained phi: {first.verdict} than SR(BA); against what phi made of the "
            f"same factors before c moved, {second.verdict}"
        )


def findings(runs: Sequence[Run]) -> Findings:
    """Read runs together.

    Args:
        runs: of one experiment, a seed each.

    Raises:
        InputError: none, or runs that have no layer in common.
    """
    rows_of_seeds = [run.rows for run in runs]
    try:
        variation = layer_variation(rows_of_seeds)
    except ValueError as error:
        raise InputError(f"cannot read these runs together: {error}") from error
    has_gates = all(row.gate is not None for rows in rows_of_seeds for row in rows)
    moved = [row.c_change for rows in rows_of_seeds for row in rows]
    metric = runs[0].metrics.get("metric", "")
    bounds = bounds_of(metric)
    values = [run.metrics[metric] for run in runs if metric and metric in run.metrics]
    pairs = [(r.metrics[metric], r.lora_metrics[metric]) for r in runs if metric and metric in r.lora_metrics]
    return Findings(
        rows_of_seeds=rows_of_seeds,
        variation=variation,
        kinds={
            "stable_rank": attention_against_mlp(rows_of_seeds),
            "stable_rank_ba": attention_against_mlp(rows_of_seeds, "stable_rank_ba"),
            "beyond_lora": attention_against_mlp(rows_of_seeds, "beyond_lora"),
            **({"gate": attention_against_mlp(rows_of_seeds, "gate")} if has_gates else {}),
        },
        table=layer_means(rows_of_seeds),
        mixed=_mixed(runs),
        warnings=[f"{run.folder.name}: {text}" if len(runs) > 1 else text for run in runs for text in run.warnings],
        is_frozen=runs[0].phi == "sine" or all(change is not None and change < UNMOVED for change in moved),
        metric=metric,
        ours=mean_interval(values, bounds=bounds) if values else None,
        against_lora=(
            paired_difference(
                [a for a, _ in pairs], [b for _, b in pairs], smallest_effect=SMALLEST_EFFECT, bounds=bounds
            )
            if pairs
            else None
        ),
    )


def _mixed(runs: Sequence[Run]) -> list[str]:
    found = []
    for key in sorted({key for run in runs for key in run.settings} - FREE - {"seed"}):
        values = [run.settings.get(key) for run in runs if run.settings]
        if any(value != values[0] for value in values):
            found.append(f"{key} ({', '.join(sorted({str(value) for value in values}))})")
    seeds = [run.settings.get("seed") for run in runs if run.settings]
    if len(set(seeds)) < len(seeds):
        found.append("nothing: two of them have the same seed, which counts one experiment twice")
    return found
