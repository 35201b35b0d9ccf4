"""What a study found: per arm a mean with its interval, and paired differences to the reference over seeds."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from lrlora.statistics import Interval, PairedDifference, mean_interval, paired_difference
from lrlora.study.plan import Row, chosen_rate, is_at_the_edge
from lrlora.study.spec import Arm, Study, Task


@dataclass(frozen=True)
class ArmResult:
    """One arm on one task.

    Args:
        task, arm, method: which.
        metric: what `test` holds.
        learning_rate: chosen on validation rows; None where no rate came through.
        at_the_edge: the chosen rate is the lowest or the highest: a better one may lie beyond the grid.
        validation: the metric that chose it, mean over search seeds.
        test: the metric on test rows over seeds.
        difference: to the reference arm, over the seeds that both have; None for the reference itself.
        trainable_parameters, file_bytes: of one cell.
        wall_s, peak_bytes: medians over final cells.
        failed: cells that failed, search and final together.
        missing: final cells that have not run.
    """

    task: str
    arm: str
    method: str
    metric: str | None
    learning_rate: float | None
    at_the_edge: bool
    validation: float | None
    test: Interval | None
    difference: PairedDifference | None
    trainable_parameters: int | None
    file_bytes: int | None
    wall_s: float | None
    peak_bytes: float | None
    failed: int
    missing: int


def summary(study: Study, rows: list[Row]) -> list[ArmResult]:
    """The result of every arm on every task.

    Args:
        study: what was compared.
        rows: as `run_study` returns them.
    """
    reference = study.reference_arm()
    results = []
    for task in study.tasks:
        theirs = None if reference is None else _by_seed(rows, task, reference)
        results += [_result(study, task, arm, rows, None if arm.name == reference else theirs) for arm in study.arms]
    return results


def _result(study: Study, task: Task, arm: Arm, rows: list[Row], theirs: dict[int, float] | None) -> ArmResult:
    mine = [row for row in rows if (row["task"], row["arm"]) == (task.name, arm.name)]
    searched = [row for row in mine if row["phase"] == "search"]
    final = [row for row in mine if row["phase"] == "final" and row["status"] == "done"]
    rate = chosen_rate(searched) if len(searched) == _searches(study, arm) else None
    ours = _by_seed(rows, task, arm.name)
    difference = None
    if theirs is not None and ours:
        both = [seed for seed in study.seeds if seed in ours and seed in theirs]
        difference = paired_difference([ours[seed] for seed in both], [theirs[seed] for seed in both])
    one = final[0] if final else {}
    return ArmResult(
        task=task.name,
        arm=arm.name,
        method=arm.method,
        metric=next((row["metric"] for row in mine if row["metric"]), None),
        learning_rate=rate,
        at_the_edge=rate is not None and is_at_the_edge(study, arm, rate),
        validation=None
        if rate is None
        else statistics.fmean(row["value"] for row in searched if row["learning_rate"] == rate),
        test=mean_interval(list(ours.values())) if ours else None,
        difference=difference,
        trainable_parameters=one.get("trainable_parameters"),
        file_bytes=one.get("file_bytes"),
        wall_s=_median(final, "wall_s"),
        peak_bytes=_median(final, "peak_bytes"),
        failed=sum(row["status"] == "failed" for row in mine),
        missing=len(study.seeds) - sum(row["phase"] == "final" for row in mine),
    )


def _searches(study: Study, arm: Arm) -> int:
    return len(study.rates_of(arm)) * len(study.search_seeds)


def _by_seed(rows: list[Row], task: Task, arm: str) -> dict[int, float]:
    return {
        row["seed"]: row["value"]
        for row in rows
        if (row["task"], row["arm"], row["phase"], row["status"]) == (task.name, arm, "final", "done")
    }


def _median(rows: list[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return statistics.median(values) if values else None


def summary_lines(results: list[ArmResult]) -> list[str]:
    """What to tell beside the table: rates at the edge of their grid, and cells that failed or are missing."""
    lines = []
    for edge in (r for r in results if r.at_the_edge):
        lines.append(
            f"{edge.task}, {edge.arm}: the best learning rate, {edge.learning_rate:g}, is at the edge of its grid; "
            "widen the grid of every arm before you trust a difference"
        )
    for bad in (r for r in results if r.failed):
        what = "no learning rate came through" if bad.learning_rate is None else "the rest are counted"
        lines.append(f"{bad.task}, {bad.arm}: {bad.failed} cells failed, {what}; --retry_failed runs them again")
    return lines


def method_comparison_rows(study: Study, rows: list[Row]) -> list[dict[str, Any]]:
    """Every final cell in the shape of the results of PEFT's method_comparison: run_info, train_info, meta_info.

    What was not measured is None. Its own tables hold accelerator memory; `peak_kind` says what stands there instead.

    Args:
        study: what was compared.
        rows: as `run_study` returns them.
    """
    return [_comparison(study, row) for row in rows if row["phase"] == "final"]


def _comparison(study: Study, row: Row) -> dict[str, Any]:
    versions = row["versions"]
    return {
        "run_info": {
            "created_at": None,
            "experiment_name": f"{row['method']}/{row['arm']}--{row['task']}--seed{row['seed']}",
            "peft_config": row["adapter"],
            "train_config": {
                "model_id": study.model or "all-MiniLM-L6-v2",
                "dataset": row["task"],
                "lr": row["learning_rate"],
                "seed": row["seed"],
            },
            "error_msg": row["reason"] or "",
        },
        "train_info": {
            "status": "success" if row["status"] == "done" else "failed",
            "train_time": row["wall_s"],
            "accelerator_memory_max": row["peak_bytes"],
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_reserved_99th": None,
            "memory_kind": row["peak_kind"],
            "file_size": row["file_bytes"],
            "num_trainable_params": row["trainable_parameters"],
            "num_total_params": row["total_parameters"],
            "metrics": [
                {"step": row["steps"], "train loss": row["train_loss"], "test loss": row["loss"]}
                | {f"test {name}": value for name, value in (row["metrics"] or {}).items() if name != "loss"}
            ],
        },
        "meta_info": {
            "model_info": {"sha": None, "created_at": None},
            "dataset_info": {row["task"]: {"sha": None, "created_at": None}},
            "package_info": {f"{name}-version": versions[name] for name in ("lrlora", "peft", "transformers", "torch")},
            "system_info": {key: versions[key] for key in ("python", "threads", "device")},
        },
    }
