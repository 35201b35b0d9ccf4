"""Other carriers than the library's, on the facts of facts-encoder.yaml; plain torch in place of the fast op.

Hypotheses, written before the run; bits of 2,000 facts (8,000 bits) as in facts-encoder.yaml, three seeds each:
  flat: signs of a Walsh-Hadamard matrix, whose rows are orthogonal, hold at most a tenth more than hashed signs.
  W0: the pretrained weight over its RMS in place of the signs (HiRA with a learned mixture) holds as much as the signs.
  component: a gate per rank-one component of B A holds at most a tenth more than one per layer, open or closed.
  penalty: lambda sum_layers gamma closes the gates on 250 facts before it closes them on 2,000.
Test: mean and 95 % interval over three seeds of the difference to hashed signs with the same r, start and facts. The
rates are those that facts-encoder.yaml chose for hashed signs, and one above or below where said: no variant is tuned.

    python studies/probes/carrier_variants.py studies/probes/carrier_variants.jsonl
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import Trainer

from lrlora.method.carrier import signs
from lrlora.tuner import deltas
from lrlora.tuner.delta import LRLoraDelta
from lrlora.tuner.theta import GAIN
from peft_study.cell import Bench
from peft_study.plan import digests_of, open_cells
from peft_study.read import read_study

STUDY = """
study: variants
blocks: 2
learning_rates: [{rate}]
search_seeds: [100]
seeds: [{seed}]
smallest_effect: 0
training: {{precision: fp32}}
tasks:
  - {{name: facts, kind: facts, facts: {facts}, values: 16, pooling: mean, max_length: 32, batch_size: 100, epochs: 20}}
arms:
  - {{name: arm, method: lrlora, r: {r}, phi: linear, carrier: signs, carrier_start: {start}}}
"""


@dataclasses.dataclass(frozen=True)
class Job:
    """One cell: `carrier` is hashed, flat or W0, `gates` is layer or component, `penalty` is lambda."""

    carrier: str
    seed: int
    rate: float = 1.2e-2
    r: int = 1
    start: str = "open"
    facts: int = 2000
    gates: str = "layer"
    penalty: float = 0.0


def jobs() -> list[Job]:
    """All cells, the most telling ones first."""
    seeds = (0, 1, 2)
    found = [Job(carrier, seed) for carrier in ("hashed", "flat", "W0") for seed in seeds]
    found += [
        Job("hashed", seed, r=2, gates=gates, start=start)
        for start in ("open", "closed")
        for gates in ("layer", "component")
        for seed in seeds
    ]
    found += [
        Job("hashed", 0, rate=rate, start="half", facts=facts, penalty=penalty)
        for penalty in (0.0, 1e-3, 1e-2, 1e-1)
        for facts, rate in ((2000, 1.2e-2), (250, 6e-3))
    ]
    found += [Job("W0", seed, rate=2.4e-2) for seed in seeds]
    found += [Job("hashed", seed, r=2, gates="component", start="open", rate=6e-3) for seed in seeds]
    return found


class Variant:
    """A job's carrier and gates, in place of what LRLoraDelta computes with the fast op."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._carriers: dict[int, Tensor] = {}

    def add_gates(self, delta: LRLoraDelta) -> None:
        """One row (m, g) of theta per component where the job asks for it."""
        if self._job.gates == "component":
            delta.theta = nn.Parameter(torch.zeros(len(delta.A), 2))

    def output(self, delta: LRLoraDelta, scale: float, x: Tensor, W0: Tensor, bias: Tensor | None) -> Tensor:
        """x (W0 + dW)^T + bias with dW = s sum_k (m_k + g_k carrier) o (b_k a_k^T)."""
        c = coefficients(delta).expand(len(delta.A), 2)
        carrier = self._carrier(delta, W0)
        dW = scale * ((delta.B * c[:, 0]) @ delta.A + carrier * ((delta.B * c[:, 1]) @ delta.A))
        return linear(x, W0 + dW, bias)

    def _carrier(self, delta: LRLoraDelta, W0: Tensor) -> Tensor:
        if id(delta) not in self._carriers:
            own = delta.carrier
            assert own is not None
            made = {
                "hashed": lambda: signs(own, *W0.shape),
                "flat": lambda: walsh_hadamard(*W0.shape, int(own.seed)),
                "W0": lambda: W0 / W0.square().mean().sqrt(),
            }[self._job.carrier]()
            self._carriers[id(delta)] = made.detach()
        return self._carriers[id(delta)]


def coefficients(delta: LRLoraDelta) -> Tensor:
    """(m, g) of a layer [2], or of each component [r, 2]."""
    assert delta.theta is not None and delta.c_start is not None
    return delta.c_start + GAIN * delta.theta


def gammas(model: nn.Module) -> list[Tensor]:
    """g^2 / (m^2 + g^2) of every layer, over all its components."""
    found = [coefficients(placed.delta).square() for placed in deltas(model)]
    return [squares[..., 1].sum() / squares.sum() for squares in found]


def walsh_hadamard(rows: int, columns: int, seed: int) -> Tensor:
    """Rows and columns of a Walsh-Hadamard matrix, drawn without repetition: entry (i, j) is -1^(bits in i and j)."""
    size = 1 << (max(rows, columns) - 1).bit_length()
    generator = torch.Generator().manual_seed(seed)
    i, j = (torch.randperm(size, generator=generator)[:many] for many in (rows, columns))
    both = i[:, None] & j
    for shift in (8, 4, 2, 1):
        both = both ^ (both >> shift)
    return 1.0 - 2.0 * (both & 1)


def measure(job: Job) -> dict[str, Any]:
    """Train and score a cell under its variant."""
    variant = Variant(job)
    seen: list[float] = []
    init, loss_of = LRLoraDelta.__init__, Trainer.compute_loss

    def with_gates(delta: LRLoraDelta, *args: Any, **named: Any) -> None:
        init(delta, *args, **named)
        variant.add_gates(delta)

    def output(
        delta: LRLoraDelta, scale: float, x: Tensor, W0: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        assert W0 is not None
        return variant.output(delta, scale, x, W0, bias)

    def with_penalty(trainer: Trainer, model: nn.Module, *args: Any, **named: Any) -> Any:
        loss = loss_of(trainer, model, *args, **named)
        return loss + job.penalty * sum(gammas(model)) if job.penalty else loss

    def see_gates(model: nn.Module) -> None:
        seen.extend(gamma.item() for gamma in gammas(model))

    with (
        patch.object(LRLoraDelta, "__init__", with_gates),
        patch.object(LRLoraDelta, "output", output),
        patch.object(Trainer, "compute_loss", with_penalty),
        patch("peft_study.cell._ranks", see_gates),
        tempfile.TemporaryDirectory() as folder,
    ):
        path = Path(folder) / "study.yaml"
        path.write_text(STUDY.format(**dataclasses.asdict(job)))
        study = read_study(path)
        (cell,) = open_cells(study, digests_of(study), {})
        started = time.perf_counter()
        row = Bench(study).run(cell)
    if row.status != "done":
        raise SystemExit(f"{job}: {row.reason}\n{row.traceback}")
    return {
        "job": dataclasses.asdict(job),
        "metrics": row.metrics,
        "trainable_parameters": row.trainable_parameters,
        "gammas": seen,
        "wall_s": time.perf_counter() - started,
        "versions": row.versions,
    }


def main() -> None:
    """Run the cells that the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="JSON lines to append to")
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    done = [json.loads(line)["job"] for line in rows.read_text().splitlines()] if rows.exists() else []
    for job in jobs():
        if dataclasses.asdict(job) not in done:
            row = measure(job)
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
