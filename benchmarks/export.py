"""What an export to plain LoRA loses: the metric against the number of exported parameters, compared with plain LoRA
trained with the same ranks.

    python -m benchmarks.export [--work DIR] [--seeds 0 1 2] [--cells N] [--table]

Trains LR-LoRA on the embedded task, exports it at several energies, and trains plain LoRA from scratch with the emitted
rank_pattern and with one rank for all layers, of as nearly as possible the same number of parameters. Every finished
cell is written to benchmarks/results/export.json; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import peft
import torch
import transformers

import lrlora
from lrlora.cli.flags import quiet_libraries
from lrlora.data import load_task
from lrlora.evaluation.score import score_task
from lrlora.export import RankChoice, export_lora, rank_pattern
from lrlora.files import write_json
from lrlora.saved.load import load_adapter
from lrlora.saved.tokens import load_tokenizer
from lrlora.training import TrainConfig, train

RESULTS = Path(__file__).parent / "results" / "export.json"
PAGE = Path(__file__).parents[1] / "docs" / "export.md"
START, END = "<!-- table: python -m benchmarks.export --table -->", "<!-- end of table -->"
ENERGIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
# a run that is cut short has the ends and the middle of the curve for all seeds
ORDER = (0.9, 0.5, 0.99, 0.7, 0.95, 0.8, 1.0)


@dataclass
class PatternConfig(TrainConfig):
    """A run of plain LoRA whose ranks come from a JSON file."""

    pattern: Optional[str] = None  # noqa: UP045

    def adapter_config(self, task_type: str) -> Any:
        """LoraConfig of the file."""
        if self.pattern is None:
            return super().adapter_config(task_type)
        return peft.LoraConfig(**json.loads(Path(self.pattern).read_text(encoding="utf-8")))


class Enough(Exception):
    """As many cells as were asked for."""


def measure(work: Path, seeds: list[int], most: int) -> None:
    """Fill in cells that are missing, at most so many."""
    cells: dict[str, dict] = json.loads(RESULTS.read_text())["cells"] if RESULTS.exists() else {}
    made = 0

    def cell(key: str, make: Any, *arguments: Any) -> dict:
        nonlocal made
        if key not in cells:
            if made == most:
                raise Enough
            started = time.perf_counter()
            cells[key] = {**make(*arguments), "wall_s": round(time.perf_counter() - started, 1)}
            made += 1
            save(cells)
            print(key, cells[key], flush=True)
        return cells[key]

    def run_of(seed: int) -> Path:
        return work / f"lrlora-{seed}"

    for seed in seeds:
        cell(f"{seed}/lrlora", trained, TrainConfig.of(seed=seed, out=str(run_of(seed)), compare=False))
    # the exports first: they train nothing
    for energy in ORDER:
        for seed in seeds:
            at = f"{seed}/{energy}"
            cell(f"{at}/export", export_cell, run_of(seed), work / at, energy)
    for energy in ORDER:
        for seed in seeds:
            at = f"{seed}/{energy}"
            exported = cells[f"{at}/export"]
            cell(f"{at}/pattern", pattern_cell, run_of(seed), work / at, energy, seed)
            rank = max(1, round(exported["parameters"] / exported["per_rank"]))
            # the same run for two energies is trained once
            cells[f"{at}/uniform"] = {**cell(f"{seed}/uniform-{rank}", uniform_cell, work, rank, seed), "rank": rank}
            save(cells)


def export_cell(run: Path, at: Path, energy: float) -> dict:
    """Export, load with peft, evaluate."""
    made = export_lora(str(run), at / "exported", RankChoice(energy=energy), overwrite=True)
    config = TrainConfig.of()
    model = load_adapter(str(at / "exported"))
    assert model.peft_config["default"].peft_type == "LORA"
    found = score_task(model, load_tokenizer(str(run / "adapter")), load_task(config.data_source()), config.max_length)
    return {
        **found,
        "parameters": made.parameters,
        "per_rank": sum(sum(row.shape) for row in made.layers),
        "relative_error": made.relative_error,
        "ranks": [row.rank for row in made.layers],
    }


def pattern_cell(run: Path, at: Path, energy: float, seed: int) -> dict:
    """Plain LoRA with the emitted ranks."""
    file = at / "pattern.json"
    rank_pattern(str(run), RankChoice(energy=energy), file=file)
    out = str(at / "pattern")
    return trained(PatternConfig(method="lora", seed=seed, out=out, compare=False, overwrite=True, pattern=str(file)))


def uniform_cell(work: Path, rank: int, seed: int) -> dict:
    """Plain LoRA of one rank."""
    out = str(work / f"{seed}" / f"uniform-{rank}")
    return trained(TrainConfig.of(method="lora", seed=seed, out=out, compare=False, overwrite=True, r=rank))


def trained(config: TrainConfig) -> dict:
    """Train and return what matters of the metrics."""
    model_parameters = {}

    class Count(transformers.TrainerCallback):
        """Counts the parameters of the factors, without the head."""

        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
            model_parameters["parameters"] = sum(p.numel() for n, p in named if "lora_" in n)

    metrics = train(config, callbacks=[Count()]).metrics
    return {"accuracy": metrics["accuracy"], "loss": metrics["loss"], "steps": metrics["steps"], **model_parameters}


def save(cells: dict) -> None:
    """Write all cells, with what they were measured with."""
    about = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "lrlora": lrlora.__version__,
        "task": "embedded BBC News titles, 800 rows to train on, 1000 held out",
        "model": "all-MiniLM-L6-v2",
        "settings": "the defaults of lrlora train: r 8, alpha 2 r, 2 epochs, batch 16, learning rate 2e-3, linear",
    }
    # what another process has measured meanwhile stays
    others = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"] if RESULTS.exists() else {}
    cells.update({key: value for key, value in others.items() if key not in cells})
    write_json(RESULTS, {"about": about, "cells": dict(sorted(cells.items()))})


def table() -> str:
    """The cells as a table: mean of the seeds, then every seed; a mean only where all seeds are there."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    about, cells = found["about"], found["cells"]
    seeds = sorted({key.split("/")[0] for key in cells})

    def column(which: str, field: str, form: str) -> str:
        values = [cells.get(f"{seed}/{which}", {}).get(field) for seed in seeds]
        shown = " ".join("-" if value is None else form.format(value) for value in values)
        known = [value for value in values if value is not None]
        return f"**{form.format(sum(known) / len(known))}** {shown}" if len(known) == len(values) else shown

    own = cells[f"{seeds[0]}/lrlora"]["parameters"]
    lines = [
        f"{about['model']}, {about['task']}; {about['settings']}, the same for all. Seeds {', '.join(seeds)}; "
        f"threads: {about['threads']}; torch {about['torch']}, peft {about['peft']}, transformers "
        f"{about['transformers']}. Accuracy: **mean**, then each seed; - is not measured. The LR-LoRA adapters "
        f"themselves ({own:,} parameters): {column('lrlora', 'accuracy', '{:.3f}')}.",
        "",
        "| energy | error of export | its parameters | exported | LoRA, emitted ranks | LoRA, one rank | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for energy in ENERGIES:
        parts = [
            column(f"{energy}/export", "relative_error", "{:.2g}"),
            column(f"{energy}/export", "parameters", "{:,.0f}"),
            *(column(f"{energy}/{which}", "accuracy", "{:.3f}") for which in ("export", "pattern", "uniform")),
            column(f"{energy}/uniform", "parameters", "{:,.0f}"),
        ]
        lines.append(f"| {energy} | {' | '.join(parts)} |")
    return "\n".join(lines)


def write_page() -> None:
    """Put the table into docs/export.md."""
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(START)
    _, tail = rest.split(END)
    PAGE.write_text(f"{head}{START}\n{table()}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="runs/export-benchmark", help="folder for runs and exports")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="only write the table into docs/export.md")
    parser.add_argument("--cells", type=int, default=-1, help="stop after so many new cells")
    chosen = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    if not chosen.table:
        with contextlib.suppress(Enough):
            measure(Path(chosen.work), chosen.seeds, chosen.cells)
    write_page()
