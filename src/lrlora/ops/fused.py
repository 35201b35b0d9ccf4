"""The adapted linear map as one autograd.Function that keeps nothing of size out x in for the backward pass.

The plain formula, differentiated by autograd, keeps several K x out x in tensors per layer. Z, phi and phi' are cheap
to compute from A, B and c, so they are computed again instead. What is lost: one more evaluation of phi per step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import linear

from lrlora.method import update as definition
from lrlora.method.nonlinearity import Form, check_form
from lrlora.method.update import at_least_float32, check_factors
from lrlora.ops import eager

if TYPE_CHECKING:
    from jaxtyping import Float

Implementation = Literal["auto", "definition", "eager"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)


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
    impl: Implementation = "auto",
) -> Float[Tensor, "*batch out"]:
    """y = x (W0 + scale phi(B A))^T + bias, keeping x, A, B and c alone for the backward pass.

    Under autocast, and for x in half precision, the products run in that precision; B A, phi and every gradient of A, B
    and c stay in float32. W0 gets no gradient: it is frozen.

    Args:
        x: input [*batch, in].
        W0: frozen weight [out, in], or None for the share of the update alone, x dW^T + bias.
        bias: [out], or None.
        A: first factor [r, in].
        B: second factor [out, r].
        c: coefficients [K] of the sinc basis; None for phi = "sine".
        tau: knee in the units of B A, above 0; inf makes dW = scale B A.
        scale: alpha / r, or alpha / sqrt(r) with rsLoRA.
        phi: "sinc", "residual" or "sine".
        impl: "auto", "eager" (tiles of rows, any device) or "definition" (the plain formula through autograd).

    Returns:
        y [*batch, out], in the dtype of the product.

    Raises:
        ValueError: an unknown impl or phi, or shapes that do not fit.

    Example:
        >>> x, A, B = torch.ones(2, 4), torch.ones(1, 4), torch.zeros(3, 1)
        >>> adapted_linear(x, None, None, A, B, None, 1.0, 1.0, phi="sine")
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """
    check_form(phi, c)
    check_factors(A, B)
    if x.shape[-1] != A.shape[1]:
        raise ValueError(f"x ends in {x.shape[-1]} features, needed {A.shape[1]}, the columns of A {tuple(A.shape)}")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl == "definition":
        return definition.adapted_linear(x, W0, bias, A, B, c, tau, scale, phi=phi)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    tau = torch.as_tensor(tau, dtype=torch.float64 if A.dtype == torch.float64 else torch.float32, device=A.device)
    return _AdaptedLinear.apply(x, W0, bias, A, B, c, tau, scale, phi)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def delta_weight(
    A: Float[Tensor, "r in"],
    B: Float[Tensor, "out r"],
    c: Float[Tensor, " K"] | None,
    tau: Tensor | float,
    scale: float,
    *,
    phi: Form,
    impl: Implementation = "auto",
) -> Float[Tensor, "out in"]:
    """dW = scale phi(B A) without a graph, for merging and for looking at it.

    Arguments, returns and errors as for `lrlora.method.update.delta_weight`; impl as for `adapted_linear`.
    """
    check_form(phi, c)
    check_factors(A, B)
    if impl == "definition":
        return definition.delta_weight(A, B, c, tau, scale, phi=phi)
    A, B = at_least_float32(A), at_least_float32(B)
    with torch.autocast(A.device.type, enabled=False):
        return _weight(None, A, B, c, torch.as_tensor(tau, dtype=A.dtype, device=A.device), scale, phi)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(x, W0, bias, A, B, c, tau, scale, phi) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = _weight(W0, at_least_float32(A), at_least_float32(B), c, tau, scale, phi)
            return linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, W0, bias, A, B, c, tau, scale, phi = inputs
        ctx.save_for_backward(x, A, B, c)
        # W0 and tau are alive in the module anyway; naming them here keeps the saved tensors to x, A, B and c
        ctx.W0, ctx.tau, ctx.scale, ctx.phi = W0, tau, scale, phi
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        (dy,) = grad_outputs
        x, A, B, c = ctx.saved_tensors
        needs_x, _, needs_bias, *needs_factors = ctx.needs_input_grad[:6]
        rows_of_x, rows_of_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            dx, dA, dB, dc = _backward(ctx, rows_of_x, rows_of_dy, A, B, c, needs_x, any(needs_factors))
        dbias = rows_of_dy.sum(0).to(ctx.bias_dtype) if needs_bias else None
        dx = None if dx is None else dx.reshape(x.shape)
        return dx, None, dbias, dA, dB, dc, None, None, None


def _weight(W0: Tensor | None, A: Tensor, B: Tensor, c: Tensor | None, tau: Tensor, scale: float, phi: Form) -> Tensor:
    """[W0 +] dW, a tile of rows at a time."""
    weight = torch.empty(B.shape[0], A.shape[1], dtype=A.dtype, device=A.device)
    for rows in _tiles(weight):
        dW = eager.update(B[rows] @ A, c, tau, scale, phi)
        weight[rows] = dW if W0 is None else dW.add_(W0[rows])
    return weight


def _backward(ctx, x: Tensor, dy: Tensor, A: Tensor, B: Tensor, c: Tensor | None, needs_x: bool, needs_factors: bool):
    """dx, dA, dB and dc for x [T, in] and dy [T, out], a tile of rows of dW at a time."""
    tau, scale, phi, W0 = ctx.tau, ctx.scale, ctx.phi, ctx.W0
    A32, B32 = at_least_float32(A), at_least_float32(B)
    if not needs_factors:
        return (dy @ _weight(W0, A32, B32, c, tau, scale, phi).to(dy.dtype) if needs_x else None), None, None, None
    weight = torch.empty(B.shape[0], A.shape[1], dtype=A32.dtype, device=A.device) if needs_x else None
    dA, dB = torch.zeros_like(A32), torch.empty_like(B32)
    dc = None if c is None else torch.zeros_like(c, dtype=A32.dtype)
    G = (dy.T @ x).to(A32.dtype)
    for rows in _tiles(G):
        dW, dZ, dc_of_tile = eager.update_and_gradients(B32[rows] @ A32, G[rows], c, tau, scale, phi)
        dB[rows] = dZ @ A32.T
        dA.addmm_(B32[rows].T, dZ)
        if dc is not None and dc_of_tile is not None:
            dc += dc_of_tile
        if weight is not None:
            weight[rows] = dW if W0 is None else dW.add_(W0[rows])
    dx = None if weight is None else dy @ weight.to(dy.dtype)
    return dx, dA.to(A.dtype), dB.to(B.dtype), dc if dc is None or c is None else dc.to(c.dtype)


def _tiles(matrix: Tensor) -> list[slice]:
    out_features, in_features = matrix.shape
    step = eager.rows_per_tile(out_features, in_features, matrix.device)
    return [slice(start, min(start + step, out_features)) for start in range(0, out_features, step)]
