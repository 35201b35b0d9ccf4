"""Which rank every layer learned: a row per adapted layer, measured on dW, with its baseline (null), the plain B A."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrlora import ops
from lrlora.method import rank
from lrlora.method.carrier import Carrier, gate
from lrlora.method.nonlinearity import Form
from lrlora.tuner.model import deltas
from lrlora.tuner.names import Kind, block_of, kind_of, type_of
from lrlora.tuner.sharded import whole_layer

UNMOVED = 1e-3
"""c lives on a scale of 1; where no coefficient changed by more than this, phi was not learned."""
OPEN = 0.01
"""A gate below this is closed for all purposes: r bounds the update."""
QUICK_EXACT_UP_TO = 64
"""A quick look decomposes matrices up to this smaller side: Lanczos steps cost more there."""


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
        effective_rank: exp of the entropy of the normalised singular values of dW; None in a quick look.
        numerical_rank: singular values of dW above 1e-3 of the largest; None in a quick look.
        constant_share: fraction of ||dW||_F^2 in the constant matrix of its mean.
        rms_over_tau: RMS(B A) / tau; far below 1, phi is a straight line and no rank is learned. 0 where tau = "auto"
            was never calibrated.
        outside_grid: fraction of the entries of B A beyond the last sinc, |z| > M tau; None for phi = "sine".
        relative_norm: ||dW||_F / ||W0||_F; None where the base model was not at hand, or W0 is quantised in a
            way that cannot be read back (GPTQ, AWQ).
        expert: number of the expert, where the layer is one of a stack; else None.
        stable_rank_initial: SR of phi(B A) with phi at its initial coefficients, the second null: what an untrained phi
            makes of these factors. None in a quick look.
        c_change: largest change of a coefficient since the start; None for phi = "sine".
        gate: gamma = g^2 / (m^2 + g^2) in [0, 1], the fraction of the update that r does not bound, in expectation and
            at first order (`lrlora.method.carrier`): 0 is LoRA. None without a carrier.
    """

    layer: str
    block: int | None
    kind: Kind
    module: str
    stable_rank: float
    stable_rank_ba: float
    effective_rank: float | None
    numerical_rank: int | None
    constant_share: float
    rms_over_tau: float
    outside_grid: float | None
    relative_norm: float | None
    expert: int | None = None
    stable_rank_initial: float | None = None
    c_change: float | None = None
    gate: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as it is written to ranks.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> LayerRank:
        """A row of ranks.json; measures that a newer version has added are left out.

        Raises:
            TypeError: it lacks one that every version has.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in row.items() if name in known})


@torch.no_grad()
def layer_ranks(model: nn.Module, adapter_name: str = "default", is_quick: bool = False) -> list[LayerRank]:
    """Measure the learned rank of every layer that an adapter adapts.

    Args:
        model: a PeftModel with LR-LoRA.
        adapter_name: which adapter.
        is_quick: leave out what needs a whole spectrum, and the second null; ||dW||_2 comes from Lanczos steps (to
            1e-6). About a sixth of the time, for a look while training.

    Of a model that FSDP2 or ZeRO-3 has cut into shards every process must call this, outside the forward pass: layers
    are gathered one after the other, and every process returns all rows.

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
        with whole_layer(layer, delta) as (held, weight):
            for update in updates_of(
                name.removeprefix("base_model.model."), held, layer.scaling[adapter_name] * delta.gain
            ):
                W0 = weight if update.expert is None or weight is None else weight[update.expert]
                rows.append(measure(update, W0, is_quick))
    return rows


@dataclass(frozen=True)
class Update:
    """One update, s phi(B A): of a layer, or of one expert of a stack.

    Args:
        layer: dotted name of the adapted module in the base model, without the expert.
        expert: number of the expert, None outside stacks.
        A: first factor [r, in].
        B: second factor [out, r].
        c: coefficients [K], None for phi = "sine".
        tau: the knee, where phi bends, in the units of B A.
        scale: s, and what phi = "sine" divides by.
        phi: which nonlinearity.
        c_initial: the coefficients at which training started [K]; None for phi = "sine".
        carrier: with the signs of this layer or expert; None without one.
    """

    layer: str
    expert: int | None
    A: Tensor
    B: Tensor
    c: Tensor | None
    tau: Tensor
    scale: float
    phi: Form
    c_initial: Tensor | None = None
    carrier: Carrier | None = None

    @property
    def name(self) -> str:
        """Name of the layer, with the number of the expert behind it."""
        return self.layer if self.expert is None else f"{self.layer}.{self.expert}"

    @property
    def gate(self) -> float | None:
        """gamma, the fraction of the update that r does not bound, at first order; None without a carrier."""
        if self.c is None or self.carrier is None:
            return None
        return gate(self.c.float(), self.carrier.offset, self.phi).item()

    def matrix(self, c: Tensor | None) -> Tensor:
        """dW [out, in] with these coefficients."""
        how: Any = dict(phi=self.phi, carrier=self.carrier)
        return ops.adapted_weight(None, self.A, self.B, c, self.tau, self.scale, **how).detach()


def updates_of(layer: str, delta: Any, scale: float) -> list[Update]:
    """The update of a layer, or those of its experts."""
    A, B = delta.A.detach(), delta.B.detach()
    c = None if delta.c is None else delta.c.detach()
    start, carrier = delta.c_start, delta.carrier
    if A.ndim == 2:
        return [Update(layer, None, A, B, c, delta.tau, scale, delta.phi, start, carrier)]
    cs = [c] * len(A) if c is None or c.ndim == 1 else list(c)
    carriers = [None if carrier is None else carrier.of_expert(e) for e in range(len(A))]
    tau = delta.tau
    return [Update(layer, e, A[e], B[e], cs[e], tau[e], scale, delta.phi, start, carriers[e]) for e in range(len(A))]


@torch.no_grad()
def measure(update: Update, W0: Tensor | None, is_quick: bool = False) -> LayerRank:
    """The row of one update; without W0 its `relative_norm` is None."""
    dW = update.matrix(update.c)
    sigma = None if is_quick else rank.singular_values(dW)
    weight_norm = None if W0 is None else W0.float().norm().item()
    relative = None if weight_norm is None else (dW.norm().item() / weight_norm if weight_norm else float("inf"))
    stable = rank.stable_rank(dW, 1e-6, QUICK_EXACT_UP_TO) if sigma is None else _stable_rank(sigma)
    stable_ba = _stable_rank(rank.product_singular_values(update.A, update.B))
    return LayerRank(
        layer=update.name,
        block=block_of(update.layer),
        kind=kind_of(update.layer),
        module=type_of(update.layer),
        stable_rank=stable,
        stable_rank_ba=stable_ba,
        effective_rank=None if sigma is None else rank.effective_rank(sigma),
        numerical_rank=None if sigma is None else rank.numerical_rank(sigma),
        constant_share=rank.constant_share(dW),
        rms_over_tau=(rank.product_rms(update.A, update.B) / update.tau).item(),
        outside_grid=_outside_grid(update),
        relative_norm=relative,
        expert=update.expert,
        stable_rank_initial=None if is_quick else _stable_rank_initial(update, stable, stable_ba),
        c_change=_c_change(update),
        gate=update.gate,
    )


def _stable_rank_initial(update: Update, stable: float, stable_ba: float) -> float:
    change = _c_change(update)
    if not change:
        return stable
    is_open = update.carrier is not None and bool(dataclasses.replace(update, c=update.c_initial).gate)
    is_identity = update.phi != "linear" and not torch.isfinite(update.tau)
    if is_identity or (update.phi in ("residual", "linear") and not is_open):
        return stable_ba
    return rank.stable_rank(update.matrix(update.c_initial))


def rank_warnings(rows: list[LayerRank], phi: str) -> list[str]:
    """Warnings for the user about layers in which no rank was learned; empty where there are none.

    c that did not move (by less than 1e-3) leaves the phi that training started with: SR(dW) was then not learned.
    Where RMS(B A) / tau < 0.1, phi is a line and SR(dW) = SR(B A), unless a gate is open. Entries beyond the grid (a
    warning from 1 %) are folded to 0 by form "sinc", and not changed by "residual".
    """
    messages = []
    of_all = f"of {len(rows)} layers"
    still = [row.layer for row in rows if row.c_change is not None and row.c_change < UNMOVED]
    if still:
        messages.append(
            f"c did not move in {len(still)} {of_all} ({still[0]}, ...): no rank was learned there, phi is the "
            "one that training started with; raise c_learning_rate, train longer, or do not freeze c"
        )
    flat = [row.layer for row in rows if row.rms_over_tau < 0.1 and (row.gate or 0) < OPEN]
    if flat and phi not in ("sine", "linear"):
        messages.append(
            f"RMS(BA)/tau < 0.1 in {len(flat)} {of_all} ({flat[0]}, ...): phi is a straight line there "
            'and no rank was learned beyond LoRA\'s; train longer or faster, lower tau, or set tau="auto"'
        )
    outside = [row.layer for row in rows if (row.outside_grid or 0) > 0.01]
    if outside:
        fate = "phi folds them to 0" if phi == "sinc" else "phi leaves them as they are"
        messages.append(
            f"more than 1 % of the entries of BA are outside the grid in {len(outside)} {of_all} "
            f'({outside[0]}, ...): {fate}; raise tau or num_basis, or set tau="auto"'
        )
    return messages


def _c_change(update: Update) -> float | None:
    c, initial = update.c, update.c_initial
    if c is None or initial is None:
        return None
    # the middle one has no effect without a carrier
    change = (c - initial).detach().abs()
    if update.carrier is None and update.phi != "linear":
        change[len(c) // 2] = 0
    return change.max().item()


def _stable_rank(sigma: Tensor) -> float:
    energy = (sigma * sigma).sum().item()
    return energy / sigma[0].item() ** 2 if energy > 0 else 0.0


def _outside_grid(update: Update) -> float | None:
    if update.c is None or update.phi == "linear":
        return None
    Z = update.B.float() @ update.A.float()
    return (Z.abs() > len(update.c) // 2 * update.tau).float().mean().item()
