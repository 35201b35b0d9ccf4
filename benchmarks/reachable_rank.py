"""How high a stable rank phi could give to factors as training left them: python -m benchmarks.reachable_rank runs/demo

phi is linear in c. For fixed A and B, gradient ascent over c can therefore drive the stable rank of phi(B A) up,
without regard to the loss of the task. What it reaches, compared with what an untrained and the trained c give, tells
whether the basis or the training keeps the learned rank low. Results: docs/method.md.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrlora.errors import InputError
from lrlora.files import write_json
from lrlora.method.nonlinearity import initial_coefficients, phi
from lrlora.method.rank import stable_rank
from lrlora.ranks.measure import Update
from lrlora.saved.updates import stored_updates
from lrlora.tuner.names import block_of

RESULT = Path(__file__).parent / "results" / "reachable_rank.json"
RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)
BLOCKS = (1, 4)
NUM_BASIS = 11
STEPS = 120


def basis(product: Tensor, tau: float) -> Tensor:
    """What each coefficient by itself makes of the product B A: [K, out, in]."""
    units = torch.eye(NUM_BASIS)
    return torch.stack([phi(product, unit, tau, "sinc") for unit in units])


def combined(coefficients: Tensor, parts: Tensor) -> Tensor:
    """phi(B A) for some coefficients [K]."""
    return torch.einsum("k,kij->ij", coefficients, parts)


def ascend(start: Tensor, parts: Tensor) -> float:
    """The stable rank where gradient ascent from `start` ends: what c can reach at least."""
    c = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([c], lr=0.05)
    right = torch.randn(parts.shape[2], generator=torch.Generator().manual_seed(0))
    for _ in range(STEPS):
        update = combined(c, parts)
        with torch.no_grad():
            for _ in range(6):  # power iteration, warm from the step before
                left = torch.nn.functional.normalize(update @ right, dim=0)
                right = torch.nn.functional.normalize(update.T @ left, dim=0)
        largest = left @ (update @ right)
        loss = -torch.log((update * update).sum() / largest**2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(stable_rank(combined(c.detach(), parts)))


def reachable(update: Update) -> dict[str, Any]:
    """The stable ranks of one layer: of B A, as trained, and per RMS(B A) / tau at the start, at random, at best."""
    product = update.B.float() @ update.A.float()
    rms = float(product.square().mean().sqrt())
    start = initial_coefficients(NUM_BASIS, "sinc")
    generator = torch.Generator().manual_seed(0)
    row: dict[str, Any] = {
        "layer": update.layer,
        "stable_rank_ba": float(stable_rank(product)),
        "rms_over_tau": rms / float(update.tau),
        "trained": float(stable_rank(phi(product, update.c, update.tau, update.phi))),
    }
    for ratio in RATIOS:
        parts = basis(product, rms / ratio)
        drawn = [torch.randn(NUM_BASIS, generator=generator) for _ in range(5)]
        row[f"ratio {ratio:g}"] = {
            "start": float(stable_rank(combined(start, parts))),
            "random": statistics.median(float(stable_rank(combined(c, parts))) for c in drawn),
            "best": max(ascend(start, parts), ascend(drawn[0], parts)),
        }
    return row


def main(run: str) -> None:
    """Measure the layers of two blocks of a run of `lrlora train`, and write the medians."""
    updates = [u for u in stored_updates(Path(run) / "adapter") if block_of(u.layer) in BLOCKS]
    if not updates:
        raise InputError(f"{run}/adapter has no layer in the blocks {BLOCKS}; pass a run of the embedded encoder")
    rows = []
    for update in updates:
        rows.append(reachable(update))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    middle: dict[str, Any] = {
        key: statistics.median(row[key] for row in rows) for key in ("stable_rank_ba", "rms_over_tau", "trained")
    }
    for ratio in (f"ratio {r:g}" for r in RATIOS):
        middle[ratio] = {key: statistics.median(row[ratio][key] for row in rows) for key in ("start", "random", "best")}
    write_json(RESULT, {"num_basis": NUM_BASIS, "torch": torch.__version__, "median": middle, "layers": rows})


if __name__ == "__main__":
    main(*sys.argv[1:])
