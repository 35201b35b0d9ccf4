"""What a study found: per arm a mean with its interval, paired differences to the reference, and the learned ranks."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from lrlora.ranks.layers import attention_against_mlp, block_pairs, layer_table
from lrlora.statistics import (
    SMALLEST_EFFECT,
    SMALLEST_RANK_EFFECT,
    Interval,
    PairedDifference,
    bounds_of,
    mean_interval,
    paired_difference,
)
from peft_study.capacity import Capacity, capacity_of
from peft_study.plan import chosen_rate, is_at_the_edge
from peft_study.result import CellResult
from peft_study.scales import Scale, scale_of
from peft_study.spec import Study

POSITIVE = (0.0, math.inf)


@dataclass(frozen=True)
class ArmRanks:
    """The learned ranks of an arm on a task, seeds together.

    Args:
        stable_rank: SR(dW), mean over layers, over seeds.
        stable_rank_ba: SR(B A), its null.
        beyond_lora: SR(dW) - SR(B A), paired by layer.
        attention, mlp: mean SR(dW) of the blocks' layers of that kind; None where no block has both.
        attention_minus_mlp: paired by block, of SR(dW); None where no block has both.
        attention_minus_mlp_ba: the same of the null.
        attention_minus_mlp_beyond: the same of what is beyond it.
        rms_over_tau: RMS(B A) / tau, mean over layers and seeds; None where phi has no knee.
        outside_grid: fraction of entries outside the grid, mean over layers and seeds.
        seeds: number of seeds.
    """

    stable_rank: Interval
    stable_rank_ba: Interval
    beyond_lora: PairedDifference
    attention: float | None
    mlp: float | None
    attention_minus_mlp: PairedDifference | None
    attention_minus_mlp_ba: PairedDifference | None
    attention_minus_mlp_beyond: PairedDifference | None
    rms_over_tau: float | None
    outside_grid: float | None
    seeds: int


@dataclass(frozen=True)
class ArmResult:
    """One arm on one task.

    Args:
        task, arm, method: which.
        scale: s of its update with its rank; None for methods that have none, and where no cell came through.
        metric: what `test` holds.
        learning_rate: chosen on validation rows; None where no rate came through.
        at_the_edge: the chosen rate is the lowest or the highest: a better one may be beyond the grid.
        validation: the metric that chose it, mean over search seeds.
        test: the metric on test rows over seeds.
        difference: to the reference arm, over the seeds that both have; None for the reference itself.
        loss: the loss on test rows over seeds.
        loss_difference: as `difference`.
        trainable_parameters, file_bytes: of one cell.
        wall_s, peak_bytes: medians over final cells.
        ranks: None for arms without a learned rank.
        failed: cells that failed, search and final together.
        rates_tried: by the search, in rising order, with those beyond the grid of the study; empty without a search.
        diverged: those of them that have lost because a cell diverged, which is a failure in tasks of other kinds.
        capacity: what the arm holds; None for tasks that are not of facts.
    """

    task: str
    arm: str
    method: str
    scale: Scale | None
    metric: str | None
    learning_rate: float | None
    at_the_edge: bool
    validation: float | None
    test: Interval | None
    difference: PairedDifference | None
    loss: Interval | None
    loss_difference: PairedDifference | None
    trainable_parameters: int | None
    file_bytes: int | None
    wall_s: float | None
    peak_bytes: float | None
    ranks: ArmRanks | None
    failed: int
    rates_tried: tuple[float, ...] = ()
    diverged: tuple[float, ...] = ()
    capacity: Capacity | None = None


def summary(
    rows: Sequence[CellResult], reference: str | None = None, smallest_effect: float = SMALLEST_EFFECT
) -> list[ArmResult]:
    """The result of every arm on every task, in the order of the rows.

    Args:
        rows: as `run_study` returns them, or a part of them.
        reference: the arm that others are compared with; None: the first of method "lora".
        smallest_effect: smaller differences of the metric and of the loss are not called shown.
    """
    reference = reference or reference_of(rows)
    by_cell: dict[tuple[str, str], list[CellResult]] = {}
    for row in rows:
        by_cell.setdefault((row.task, row.arm), []).append(row)
    return [
        _result(mine, None if arm == reference else by_cell.get((task, reference or ""), []), smallest_effect)
        for (task, arm), mine in by_cell.items()
    ]


def reference_of(rows: Sequence[CellResult]) -> str | None:
    """The arm that the others are compared with where no study says so: the first of method "lora"."""
    return next((row.arm for row in rows if row.method == "lora"), None)


def as_dict(study: Study, rows: Sequence[CellResult], results: Sequence[ArmResult]) -> dict[str, Any]:
    """summary.json: the results, and which rows of results.jsonl they are made of."""
    return {
        "study": study.study,
        "note": study.note,
        "reference": study.reference_arm(),
        "smallest_effect": study.smallest_effect,
        "arms": [_described(study, result) for result in results],
        "cells": [row.fingerprint for row in rows],
    }


def _described(study: Study, result: ArmResult) -> dict[str, Any]:
    """Without what only facts and widened searches have, where there are none."""
    described = dataclasses.asdict(result)
    if result.capacity is None and not study.widen:
        for name in ("rates_tried", "diverged", "capacity"):
            if name != "diverged" or not result.diverged:
                del described[name]
    return described


def _result(rows: list[CellResult], theirs: list[CellResult] | None, smallest_effect: float) -> ArmResult:
    searched = [row for row in rows if row.phase == "search"]
    final = [row for row in rows if row.is_result]
    rate = final[0].learning_rate if final else chosen_rate(searched)
    validation = [row.known_value for row in searched if row.learning_rate == rate and row.status == "done"]
    one = final[0] if final else None
    known = next((row for row in (*final, *rows) if row.metric), None)
    bounds = bounds_of(known and known.metric)

    def against(key: str) -> PairedDifference | None:
        if not theirs or not final:
            return None
        ours, others = _by_seed(final, key), _by_seed(theirs, key)
        both = [seed for seed in ours if seed in others]
        limits = bounds if key == "value" else POSITIVE
        pairs = [ours[seed] for seed in both], [others[seed] for seed in both]
        return paired_difference(*pairs, smallest_effect=smallest_effect, bounds=limits) if both else None

    return ArmResult(
        task=rows[0].task,
        arm=rows[0].arm,
        method=rows[0].method,
        scale=scale_of(known and known.adapter),
        metric=known and known.metric,
        learning_rate=rate,
        at_the_edge=rate is not None and is_at_the_edge({row.learning_rate for row in searched}, rate),
        validation=statistics.fmean(validation) if validation else None,
        test=mean_interval(list(_by_seed(final, "value").values()), bounds=bounds) if final else None,
        difference=against("value"),
        loss=mean_interval(list(_by_seed(final, "loss").values()), bounds=POSITIVE) if final else None,
        loss_difference=against("loss"),
        trainable_parameters=one and one.trainable_parameters,
        file_bytes=one and one.file_bytes,
        wall_s=_middle(final, "wall_s"),
        peak_bytes=_middle(final, "peak_bytes"),
        ranks=_ranks(final),
        failed=sum(row.status == "failed" for row in rows),
        rates_tried=_rates(searched),
        diverged=_rates([row for row in searched if row.status == "diverged"]),
        capacity=capacity_of(final, [row for row in theirs or [] if row.is_result]),
    )


def _rates(rows: Sequence[CellResult]) -> tuple[float, ...]:
    return tuple(sorted({row.learning_rate for row in rows}))


def _ranks(final: list[CellResult]) -> ArmRanks | None:
    # of a diverged layer there is no rank, and JSON has no nan
    whole = [row for row in final if row.ranks and all(layer["stable_rank"] for layer in row.ranks)]
    seeds: list[list[Any]] = [[SimpleNamespace(**layer) for layer in row.ranks or ()] for row in whole]
    if not seeds:
        return None
    pairs = block_pairs(seeds)
    ours, null = (layer_table(seeds, measure).mean(axis=0) for measure in ("stable_rank", "stable_rank_ba"))
    return ArmRanks(
        stable_rank=mean_interval(_means(seeds, "stable_rank"), bounds=POSITIVE),
        stable_rank_ba=mean_interval(_means(seeds, "stable_rank_ba"), bounds=POSITIVE),
        beyond_lora=paired_difference(ours, null, smallest_effect=SMALLEST_RANK_EFFECT),
        attention=statistics.fmean(a for a, _ in pairs.values()) if pairs else None,
        mlp=statistics.fmean(m for _, m in pairs.values()) if pairs else None,
        attention_minus_mlp=attention_against_mlp(seeds) if pairs else None,
        attention_minus_mlp_ba=attention_against_mlp(seeds, "stable_rank_ba") if pairs else None,
        attention_minus_mlp_beyond=attention_against_mlp(seeds, "beyond_lora") if pairs else None,
        rms_over_tau=_mean(_means(seeds, "rms_over_tau")),
        outside_grid=_mean(_means(seeds, "outside_grid")),
        seeds=len(seeds),
    )


def _means(seeds: Sequence[Sequence[Any]], name: str) -> list[float]:
    """Mean over layers, a number a seed; none where a layer has none."""
    values = [[getattr(layer, name) for layer in layers] for layers in seeds]
    return [statistics.fmean(layers) for layers in values if None not in layers]


def _by_seed(rows: Sequence[CellResult], key: str) -> dict[int, float]:
    return {row.seed: getattr(row, key) for row in rows if row.is_result}


def _middle(rows: Sequence[CellResult], key: str) -> float | None:
    values = [getattr(row, key) for row in rows if getattr(row, key) is not None]
    return statistics.median(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
