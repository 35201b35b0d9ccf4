"""Writes src/peft_study/step_costs.json, which `lrlora study --dry_run` reads: python -m benchmarks.step_costs"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import measure

TARGET = Path(__file__).parents[1] / "src" / "peft_study" / "step_costs.json"
# methods of a study by the name of what was measured; rsLoRA and Sine-LoRA do the same work as these
MEASURED = {
    "full": "full fine-tuning", "lora": "LoRA", "rslora": "LoRA", "dora": "DoRA", "hira": "HiRA",
    "randlora": "RandLoRA", "loha": "LoHa", "lrlora": "lrlora native", "sine": "lrlora native",
}  # fmt: skip


def step_costs() -> dict[str, Any]:
    """Time and peak memory of a training step over plain LoRA's, by tokens of a step, with AVX2 instructions.

    Time is the quotient of medians. Memory is at least 1: a step below LoRA's peak is noise. A method that is not
    measured at so many tokens takes its time and memory of the next fewer; when HiRA, RandLoRA and LoHa were measured
    at 4,096, these were 0.1 to 0.2 above their own. Of full fine-tuning memory is 1: what its peak has beyond LoRA's
    are gradients and optimizer states, which an estimate counts from its parameters.
    """
    found = measure.read("avx2/step")
    rows = [row for row in found["rows"] if row["what"] == "training step"]

    def measured(name: str) -> list[dict[str, Any]]:
        last: dict[str, Any] = {}
        return [last := row if name in row["seconds"] else last for row in rows]

    def time(row: dict[str, Any], name: str) -> float:
        return measure.median(row["seconds"][name]) / measure.median(row["seconds"]["LoRA"])

    def memory(row: dict[str, Any], method: str, name: str) -> float:
        return 1.0 if method == "full" else max(1.0, row["peak_bytes"][name] / row["peak_bytes"]["LoRA"])

    return {
        "source": "benchmarks/results/avx2/step.json",
        "environment": found["environment"],
        "tokens": [row["T"] for row in rows],
        "time": {method: [round(time(row, name), 2) for row in measured(name)] for method, name in MEASURED.items()},
        "memory": {
            method: [round(memory(row, method, name), 2) for row in measured(name)] for method, name in MEASURED.items()
        },
    }


def text() -> str:
    """The text of the file."""
    return json.dumps(step_costs(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
