"""Results in the format of PEFT's method_comparison."""

from __future__ import annotations

from typing import Any

from peft_study.result import CellResult
from peft_study.spec import Study


def method_comparison_rows(study: Study, rows: list[CellResult]) -> list[dict[str, Any]]:
    """Every final cell in the format of the results of PEFT's method_comparison: run_info, train_info, meta_info.

    What was not measured is None. Its own tables hold accelerator memory; `peak_kind` says what is there instead.

    Args:
        study: what was compared.
        rows: as `run_study` returns them.
    """
    return [_comparison(study, row) for row in rows if row.phase == "final"]


def _comparison(study: Study, row: CellResult) -> dict[str, Any]:
    versions = row.versions
    return {
        "run_info": {
            "created_at": None,
            "experiment_name": f"{row.method}/{row.arm}--{row.task}--seed{row.seed}",
            "peft_config": row.adapter,
            "train_config": {
                "model_id": study.model or "all-MiniLM-L6-v2",
                "dataset": row.task,
                "lr": row.learning_rate,
                "seed": row.seed,
            },
            "error_msg": row.reason or "",
        },
        "train_info": {
            "status": "success" if row.status == "done" else "failed",
            "train_time": row.wall_s,
            "accelerator_memory_max": row.peak_bytes,
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_reserved_99th": None,
            "memory_kind": row.peak_kind,
            "file_size": row.file_bytes,
            "num_trainable_params": row.trainable_parameters,
            "num_total_params": row.total_parameters,
            "metrics": [
                {"step": row.steps, "train loss": row.train_loss, "test loss": row.loss}
                | {f"test {name}": value for name, value in (row.metrics or {}).items() if name != "loss"}
            ],
        },
        "meta_info": {
            "model_info": {"sha": None, "created_at": None},
            "dataset_info": {row.task: {"sha": None, "created_at": None}},
            "package_info": {f"{name}-version": versions[name] for name in ("lrlora", "peft", "transformers", "torch")},
            "system_info": {key: versions[key] for key in ("python", "threads", "device")},
        },
    }
