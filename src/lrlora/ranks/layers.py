"""What the layers of a model show: whether attention and MLP differ, and how layers vary beyond the baseline (null)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy

from lrlora.statistics.differences import (
    SIGN_FLIP_FROM,
    SMALLEST_RANK_EFFECT,
    PairedDifference,
    are,
    difference_of,
    paired_difference,
    sign_flip,
    untested,
)
from lrlora.statistics.intervals import deviation_of

Measure = Literal["stable_rank", "stable_rank_ba", "stable_rank_initial", "effective_rank", "beyond_lora", "gate"]


class Row(Protocol):
    """What is read of a layer: `lrlora.LayerRank` has it."""

    @property
    def layer(self) -> str: ...
    @property
    def block(self) -> int | None: ...
    @property
    def kind(self) -> str: ...
    @property
    def stable_rank(self) -> float: ...
    @property
    def stable_rank_ba(self) -> float: ...


@dataclass(frozen=True)
class LayerVariation:
    """How much the layers' learned ranks differ, compared with what their factors give without a learned phi.

    Args:
        spread: standard deviation over the layers of SR(dW), seeds averaged.
        spread_ba: the same of SR(B A), the first null: what plain LoRA with these factors would have.
        spread_initial: the same of SR(phi(B A)) with phi at its initial coefficients, the second null: what an
            untrained phi makes of these factors; None where it was not measured.
        against_ba: SR(dW) - SR(B A), paired by layer.
        against_initial: SR(dW) - SR of the untrained phi, paired by layer.
        spread_against_ba: distance of a layer from the mean of all layers, in SR(dW) minus in SR(B A), paired by layer.
        spread_against_initial: the same against the untrained phi.
        between_layers: fraction of the variance of SR(dW) over layers and seeds that is between layers, in [0, 1]; None
            below 2 seeds. Near 0, the pattern of the layers is another one for every seed.
        seeds: number of seeds.
    """

    spread: float
    spread_ba: float
    spread_initial: float | None
    against_ba: PairedDifference
    against_initial: PairedDifference | None
    spread_against_ba: PairedDifference
    spread_against_initial: PairedDifference | None
    between_layers: float | None
    seeds: int


def attention_against_mlp(
    rows_of_seeds: Sequence[Sequence[Row]],
    measure: Measure = "stable_rank",
    level: float = 0.95,
    smallest_effect: float = SMALLEST_RANK_EFFECT,
) -> PairedDifference:
    """Attention - MLP of a rank, paired within blocks and tested across blocks by sign flips.

    The block is the unit of the test. In every block the layers of a kind are averaged, then the seeds. Seeds are
    averaged, not counted as pairs: they share the block's position and pretrained weights (pseudoreplication). The test
    assumes that blocks are independent given the pairing, which is not quite true of neighbours in depth. All blocks
    are of one model: the result says nothing about other models.

    Args:
        rows_of_seeds: for every seed, the rows of `lrlora.layer_ranks`.
        measure: "stable_rank" of dW; the nulls "stable_rank_ba" and "stable_rank_initial"; "effective_rank"; or
            "beyond_lora", SR(dW) - SR(B A); or the "gate" of a carrier.
        level: of the interval, in (0, 1).
        smallest_effect: a smaller difference of ranks is not called shown.

    Returns:
        The difference; below 6 blocks with both kinds without a p-value, because none below 0.05 is possible.

    Example:
        result = attention_against_mlp([lrlora.layer_ranks(model)])
        print(result.verdict)
    """
    pairs = block_pairs(rows_of_seeds, measure)
    difference = difference_of([a for a, _ in pairs.values()], [m for _, m in pairs.values()], level)
    n = len(difference)
    if n < SIGN_FLIP_FROM:
        needed = f"a test across blocks needs {SIGN_FLIP_FROM} blocks with attention and MLP, there {are(n)}"
        return untested(difference, level, needed, smallest_effect)
    return sign_flip(difference, level, smallest_effect)


def block_pairs(
    rows_of_seeds: Sequence[Sequence[Row]], measure: Measure = "stable_rank"
) -> dict[int, tuple[float, float]]:
    """For every block that has both: the mean rank of its attention and of its MLP layers, averaged over seeds."""
    cells: dict[tuple[int, str], list[float]] = {}
    for rows in rows_of_seeds:
        of_seed: dict[tuple[int, str], list[float]] = {}
        for row in rows:
            if row.block is not None and row.kind in ("attention", "mlp"):
                of_seed.setdefault((row.block, row.kind), []).append(value_of(row, measure))
        for key, values in of_seed.items():
            cells.setdefault(key, []).append(_mean(values))
    blocks = sorted({block for block, _ in cells})
    return {
        b: (_mean(cells[b, "attention"]), _mean(cells[b, "mlp"]))
        for b in blocks
        if (b, "attention") in cells and (b, "mlp") in cells
    }


def layer_variation(
    rows_of_seeds: Sequence[Sequence[Row]], level: float = 0.95, smallest_effect: float = SMALLEST_RANK_EFFECT
) -> LayerVariation:
    """Layer-wise variation of SR(dW) against its nulls, paired by layer, seeds averaged.

    Two nulls: SR(B A), what the factors are without phi; and SR(phi(B A)) with phi at its initial coefficients and the
    trained A, B and tau, what an untrained phi does to them. A rank that was learned by phi differs from both. The
    tests treat the layers of the model as independent given their pairing; they are about this model only.

    Args:
        rows_of_seeds: for every seed, the rows of `lrlora.layer_ranks`. Layers that not all seeds have are left out.
        level: of the intervals, in (0, 1).
        smallest_effect: a smaller difference of ranks is not called shown.

    Raises:
        ValueError: no rows.

    Example:
        print(layer_variation([lrlora.layer_ranks(model)]).against_ba.verdict)
    """
    measures: tuple[Measure, ...] = ("stable_rank", "stable_rank_ba", "stable_rank_initial")
    ours, ba, initial = (layer_table(rows_of_seeds, measure) for measure in measures)
    if ours.size == 0:
        raise ValueError("no layer that all seeds have; pass the rows of runs of one model")
    has_initial = bool(numpy.isfinite(initial).all())
    mine, first, second = (table.mean(axis=0) for table in (ours, ba, initial))

    def against(theirs: Any, of: Callable[[Any], Any]) -> PairedDifference:
        return paired_difference(of(mine), of(theirs), level, smallest_effect)

    def level_of(ranks: Any) -> Any:
        return ranks

    def distance(ranks: Any) -> Any:
        return numpy.abs(ranks - ranks.mean())

    return LayerVariation(
        spread=deviation_of(mine),
        spread_ba=deviation_of(first),
        spread_initial=deviation_of(second) if has_initial else None,
        against_ba=against(first, level_of),
        against_initial=against(second, level_of) if has_initial else None,
        spread_against_ba=against(first, distance),
        spread_against_initial=against(second, distance) if has_initial else None,
        between_layers=_between(ours),
        seeds=len(ours),
    )


def layer_table(rows_of_seeds: Sequence[Sequence[Row]], measure: Measure) -> Any:
    """Array [seeds, layers] of a measure, over the layers that all seeds have, in the order of the first."""
    found = [{row.layer: value_of(row, measure) for row in rows} for rows in rows_of_seeds]
    names = [name for name in (found[0] if found else ()) if all(name in other for other in found)]
    return numpy.array([[of_seed[name] for name in names] for of_seed in found], dtype=float)


def value_of(row: Row, measure: Measure) -> float:
    """A measure of one row; nan where it was not measured."""
    if measure == "beyond_lora":
        return row.stable_rank - row.stable_rank_ba
    value = getattr(row, measure, None)
    return math.nan if value is None else value


def _between(table: Any) -> float | None:
    """One-way analysis of variance, seeds within layers: the intraclass correlation ICC(1), at least 0."""
    seeds, layers = table.shape
    if seeds < 2 or layers < 2:
        return None
    within = float(table.var(axis=0, ddof=1).mean())
    between = float(table.mean(axis=0).var(ddof=1)) - within / seeds
    total = max(between, 0.0) + within
    return 0.0 if total == 0 else max(between, 0.0) / total


def _mean(values: Sequence[float]) -> float:
    return float(numpy.mean(values))
