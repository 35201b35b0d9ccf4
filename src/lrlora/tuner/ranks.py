"""Which rank every layer learned: one row per adapted layer, measured on dW itself, beside its null, the plain B A."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrlora.method import rank
from lrlora.tuner.model import deltas
from lrlora.tuner.names import Kind, block_of, kind_of, type_of


@dataclass(frozen=True)
class LayerRank:
    """The learned rank of one layer and what is needed to judge it.

    Args:
        layer: dotted name of the adapted module in the base model.
        block: index of its block, None outside all blocks.
        kind: "attention", "mlp" or "other".
        module: its name within the block.
        stable_rank: SR(dW) = ||dW||_F^2 / ||dW||_2^2.
        stable_rank_ba: SR(B A), the null: what plain LoRA with these factors would have.
        effective_rank: exp of the entropy of the normalised singular values of dW.
        numerical_rank: singular values of dW above 1e-3 of the largest.
        constant_share: share of ||dW||_F^2 that is the constant matrix of its mean.
        rms_over_tau: RMS(B A) / tau; far below 1, phi is a straight line and no rank is learned. 0 where tau = "auto"
            was never calibrated.
        outside_grid: share of the entries of B A beyond the last sinc, |z| > M tau; None for phi = "sine".
        relative_norm: ||dW||_F / ||W0||_F; None where W0 is quantised in a way that cannot be read back (GPTQ, AWQ).
        expert: number of the expert, where the layer is one of a stack; else None.
    """

    layer: str
    block: int | None
    kind: Kind
    module: str
    stable_rank: float
    stable_rank_ba: float
    effective_rank: float
    numerical_rank: int
    constant_share: float
    rms_over_tau: float
    outside_grid: float | None
    relative_norm: float | None
    expert: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in ranks.json."""
        return asdict(self)


@torch.no_grad()
def layer_ranks(model: nn.Module, adapter_name: str = "default") -> list[LayerRank]:
    """Measure the learned rank of every layer that an adapter adapts.

    Args:
        model: a PeftModel with LR-LoRA.
        adapter_name: which adapter.

    Returns:
        One row per adapted layer, and per expert of a stack, in the order of the model.

    Raises:
        ValueError: the model has no LR-LoRA layer with this adapter, or an update holds NaN or inf.

    Example:
        for row in lrlora.layer_ranks(model):
            print(row.layer, row.stable_rank, row.stable_rank_ba)
    """
    found = deltas(model, adapter_name)
    if not found:
        raise ValueError(f"the model has no LR-LoRA layer with an adapter named {adapter_name!r}")
    rows = []
    for name, layer, _, delta in found:
        update, weight = layer.update_matrix(adapter_name), layer.float_weight() if layer.is_readable else None
        name = name.removeprefix("base_model.model.")
        if layer.experts is None:
            rows.append(_row(name, None, update, weight, delta, (delta.A, delta.B, delta.tau)))
            continue
        for e in range(layer.experts):
            rows.append(
                _row(
                    name,
                    e,
                    update[e],
                    None if weight is None else weight[e],
                    delta,
                    (delta.A[e], delta.B[e], delta.tau[e]),
                )
            )
    return rows


def _row(
    name: str, expert: int | None, dW: Tensor, W0: Tensor | None, delta: Any, factors: tuple[Tensor, Tensor, Tensor]
) -> LayerRank:
    A, B, tau = factors
    sigma = rank.singular_values(dW)
    return LayerRank(
        layer=name if expert is None else f"{name}.{expert}",
        block=block_of(name),
        kind=kind_of(name),
        module=type_of(name),
        stable_rank=_stable_rank(sigma),
        stable_rank_ba=_stable_rank(rank.product_singular_values(A, B)),
        effective_rank=rank.effective_rank(sigma),
        numerical_rank=rank.numerical_rank(sigma),
        constant_share=rank.constant_share(dW),
        rms_over_tau=(rank.product_rms(A, B) / tau).item(),
        outside_grid=None if delta.phi == "sine" else _outside_grid(B.float() @ A.float(), delta.num_basis, tau),
        relative_norm=None if W0 is None else (dW.norm() / W0.float().norm()).item(),
        expert=expert,
    )


def rank_warnings(rows: list[LayerRank], phi: str) -> list[str]:
    """What to tell the user where the learned rank is a fiction; empty where it is not.

    phi is a line where RMS(B A) / tau < 0.1, so that SR(dW) = SR(B A). Entries beyond the grid (a warning from 1 %) are
    folded to 0 by form "sinc", and left as they are by "residual".
    """
    messages = []
    flat = [row.layer for row in rows if row.rms_over_tau < 0.1]
    if flat and phi != "sine":
        messages.append(
            f"RMS(BA)/tau < 0.1 in {len(flat)} of {len(rows)} layers ({flat[0]}, ...): phi is a straight line there "
            'and no rank was learned beyond LoRA\'s; train longer or faster, lower tau, or set tau="auto"'
        )
    outside = [row.layer for row in rows if (row.outside_grid or 0) > 0.01]
    if outside:
        fate = "phi folds them to 0" if phi == "sinc" else "phi leaves them as they are"
        messages.append(
            f"more than 1 % of the entries of BA lie outside the grid in {len(outside)} of {len(rows)} layers "
            f'({outside[0]}, ...): {fate}; raise tau or num_basis, or set tau="auto"'
        )
    return messages


def _stable_rank(sigma: Tensor) -> float:
    energy = (sigma * sigma).sum().item()
    return energy / sigma[0].item() ** 2 if energy > 0 else 0.0


def _outside_grid(Z: Tensor, num_basis: int, tau: Tensor) -> float:
    return (Z.abs() > num_basis // 2 * tau).float().mean().item()
