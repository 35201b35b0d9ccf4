"""PEFT's Riemannian optimizer in place of AdamW, on the facts of facts-encoder.yaml: does it make an adapter hold more?

Hypothesis, written before the run: for LoRA and for LR-LoRA with an open carrier, r = 2, AdamW on preconditioned
gradients holds at most a tenth more bits of 2,000 facts (8,000 bits) than AdamW, which rescales every entry by itself.
Test: both optimizers tuned alike (four rates, one further while the best is at the edge, by bits with one search seed),
then three other seeds; mean and 95 % interval of the difference, paired over seeds. reg = 1e-2, PEFT's default.

    python studies/probes/riemannian.py studies/probes/riemannian
"""

import argparse
import contextlib
import tempfile
from pathlib import Path
from unittest.mock import patch

import peft
import peft.optimizers
import torch
from transformers import Trainer

from lrlora.statistics.differences import paired_difference
from peft_study.cell import Bench
from peft_study.plan import digests_of, open_cells
from peft_study.read import read_study
from peft_study.store import Results

STUDY = """
study: riemannian
blocks: 2
widen: 1
learning_rates: [3e-3, 6e-3, 1.2e-2, 2.4e-2]
search_seeds: [100]
seeds: [0, 1, 2]
reference: lora-r2
training: {precision: fp32}
tasks:
  - {name: facts, kind: facts, facts: 2000, values: 16, pooling: mean, max_length: 32, batch_size: 100, epochs: 20}
arms:
  - {name: lora-r2, method: lora, r: 2}
  - {name: open-r2, method: lrlora, r: 2, phi: linear, carrier: signs, carrier_start: open}
"""
OPTIMIZERS = ("adamw", "riemannian")


def preconditioned(trainer: Trainer, *_: object) -> torch.optim.Optimizer:
    """In place of Trainer.create_optimizer."""
    assert isinstance(trainer.model, peft.PeftModel)
    trainer.optimizer = peft.optimizers.create_riemannian_optimizer(
        trainer.model, torch.optim.AdamW, lr=trainer.args.learning_rate, weight_decay=0.0
    )
    return trainer.optimizer


def run(optimizer: str, folder: Path) -> dict[str, dict[int, float]]:
    """Every cell that the file of this optimizer does not hold yet; bits by arm and seed."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "study.yaml"
        path.write_text(STUDY)
        study = read_study(path)
    digests = digests_of(study)
    is_plain = optimizer == "adamw"
    changed = contextlib.nullcontext() if is_plain else patch.object(Trainer, "create_optimizer", preconditioned)
    bench = Bench(study)
    with changed, Results(folder / f"{optimizer}.jsonl") as results:
        while cells := open_cells(study, digests, results.rows):
            row = bench.run(cells[0])
            results.append(row)
            print(optimizer, row.arm, row.phase, row.learning_rate, row.seed, row.value, flush=True)
        bits: dict[str, dict[int, float]] = {}
        for row in results.rows.values():
            if row.is_result:
                bits.setdefault(row.arm, {})[row.seed] = row.known_value
    return bits


def main() -> None:
    """Run both, and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where adamw.jsonl and riemannian.jsonl are, or will be")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    plain, other = (run(optimizer, folder) for optimizer in OPTIMIZERS)
    for arm, bits in plain.items():
        found = paired_difference([other[arm][seed] for seed in bits], list(bits.values()))
        print(f"{arm}: adamw {list(bits.values())}, riemannian {list(other[arm].values())}")
        print(f"  difference {found.mean:+.0f} [{found.low:+.0f}, {found.high:+.0f}] bits")


if __name__ == "__main__":
    main()
