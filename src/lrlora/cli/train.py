"""`lrlora train`: an adapter from a task, in a run folder."""

from __future__ import annotations

import json
from typing import Any

from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.show import print_ranks, print_table, print_warnings
from lrlora.saved import names
from lrlora.training import RunResult, TrainConfig, processes, train


def run(arguments: list[str]) -> None:
    """Train, and print the result."""
    config = parse(TrainConfig, "train", arguments, "lrlora train --data ./rows --task sst2 --out runs/sst2")
    quiet_libraries()
    result = train(config)
    if not processes.is_first():
        return
    if config.json:
        print(json.dumps(_as_json(result), indent=2))
    else:
        _print_result(result)


def _as_json(result: RunResult) -> dict[str, Any]:
    compared = None if result.compared is None else result.compared.metrics
    ranks = [row.as_dict() for row in result.ranks]
    return {"folder": str(result.folder), "metrics": result.metrics, "ranks": ranks, "compared": compared}


def _print_result(result: RunResult) -> None:
    if result.ranks:
        print_ranks(result.ranks)
    first = result.metrics
    print_table(
        f"{first['task']}: {first['train_rows']} rows to train on, {first['eval_rows']} held out",
        ("method", first["metric"], "eval loss", "parameters", "steps", "time"),
        (
            (
                {"lrlora": "LR-LoRA", "lora": "LoRA"}[m["method"]],
                f"{m[m['metric']]:.4f}",
                f"{m['loss']:.4f}",
                f"{m['trainable_parameters']:,}",
                m["steps"],
                f"{m['wall_s']:.0f} s",
            )
            for m in (run.metrics for run in (result, result.compared) if run is not None)
        ),
    )
    print_warnings(result.warnings)
    written = [f"{names.ADAPTER}/", names.METRICS, names.LOG, *([names.RANKS, names.PICTURE] if result.ranks else [])]
    print(f"{result.folder}: {', '.join(written)}")
