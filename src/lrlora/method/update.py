"""The definition of LR-LoRA's update and of the adapted linear map, slow and obviously right.

Differentiable by autograd in every argument; keeps K tensors of size out x in. `lrlora.ops` computes the same fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import linear

from lrlora.method import nonlinearity
from lrlora.method.carrier import Carrier, signs
from lrlora.method.nonlinearity import Form

if TYPE_CHECKING:
    from jaxtyping import Float


def delta_weight(
    A: Float[Tensor, "r in"],
    B: Float[Tensor, "out r"],
    c: Float[Tensor, " K"] | None,
    tau: Tensor | float,
    scale: float,
    *,
    phi: Form,
    carrier: Carrier | None = None,
    rows: Tensor | None = None,
) -> Float[Tensor, "out in"]:
    """The update of one layer, dW = scale phi(B A) (arXiv:2606.04325).

    Args:
        A: first factor [r, in].
        B: second factor [out, r].
        c: coefficients [K] of the sinc basis; None for phi = "sine".
        tau: knee in the units of B A, above 0; inf makes dW = scale B A.
        scale: alpha / r, or alpha / sqrt(r) with rsLoRA.
        phi: "sinc", "residual", "sine" or "linear".
        carrier: signs at which phi is used (`carrier.py`), not with "sine"; None: at 0.
        rows: where B holds some rows of a larger matrix, their numbers in it: a carrier's signs go by them.

    Returns:
        dW [out, in], float32 (float64 for float64 factors).

    Raises:
        ValueError: factors that do not fit, an unknown phi, or c missing where phi needs it.

    Example:
        >>> import torch
        >>> delta_weight(torch.ones(1, 2), torch.zeros(3, 1), None, 1.0, 2.0, phi="sine").shape
        torch.Size([3, 2])
    """
    check_factors(A, B)
    Z = at_least_float32(B) @ at_least_float32(A)
    delta = None
    if carrier is not None:
        delta = carrier.offset * signs(carrier, len(Z) if rows is None else rows, Z.shape[1], Z.device).to(Z.dtype)
    return scale * nonlinearity.phi(Z, c, tau, phi, delta)


def adapted_linear(
    x: Float[Tensor, "*batch in"],
    W0: Float[Tensor, "out in"] | None,
    bias: Float[Tensor, " out"] | None,
    A: Float[Tensor, "r in"],
    B: Float[Tensor, "out r"],
    c: Float[Tensor, " K"] | None,
    tau: Tensor | float,
    scale: float,
    *,
    phi: Form,
    carrier: Carrier | None = None,
) -> Float[Tensor, "*batch out"]:
    """The adapted linear map, y = x (W0 + dW)^T + bias with dW = `delta_weight(A, B, c, tau, scale, phi=phi)`.

    Args:
        x: input [*batch, in].
        W0: frozen weight [out, in], or None for the contribution of the update only, x dW^T + bias.
        bias: [out], or None.
        A: first factor [r, in].
        B: second factor [out, r].
        c: coefficients [K] of the sinc basis; None for phi = "sine".
        tau: knee in the units of B A, above 0; inf makes dW = scale B A.
        scale: alpha / r, or alpha / sqrt(r) with rsLoRA.
        phi: "sinc", "residual", "sine" or "linear".
        carrier: as for `delta_weight`.

    Returns:
        y [*batch, out], in the dtype of x.

    Raises:
        ValueError: as `delta_weight`.
    """
    dW = delta_weight(A, B, c, tau, scale, phi=phi, carrier=carrier)
    weight = dW if W0 is None else W0 + dW
    return linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def at_least_float32(tensor: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32: Z and phi lose too much in half precision."""
    return tensor if tensor.element_size() == 8 else tensor.float()


def check_factors(A: Tensor, B: Tensor) -> None:
    """Raise ValueError unless A is [r, in] and B is [out, r]."""
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1]:
        raise ValueError(f"needed A [r, in] and B [out, r], got A {tuple(A.shape)} and B {tuple(B.shape)}")
