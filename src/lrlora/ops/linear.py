"""The adapted linear map as one autograd.Function that keeps nothing of size out x in for the backward pass.

The plain formula, differentiated by autograd, keeps several K x out x in tensors per layer. Z, phi and phi' are cheap
to compute from A, B and c, so they are computed again instead. What is lost: one more evaluation of phi per step.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from lrlora.method import update as definition
from lrlora.method.carrier import Carrier
from lrlora.method.nonlinearity import Form, check_form
from lrlora.method.update import check_factors
from lrlora.ops import huge_pages
from lrlora.ops.dispatch import Implementation, choose, is_by_definition
from lrlora.ops.passes import factors_in_precision, signs_of, without_autocast

if TYPE_CHECKING:
    from jaxtyping import Float


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
    impl: Implementation = "auto",
) -> Float[Tensor, "*batch out"]:
    """y = x (W0 + scale phi(B A))^T + bias, keeping only x, A, B and c for the backward pass.

    Under autocast, and for x in half precision, the products run in that precision; B A, phi and every gradient of A, B
    and c stay in float32. W0 gets no gradient: it is frozen.

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
        carrier: signs at which phi is used (`lrlora.method.carrier`), not with "sine"; None: at 0.
        impl: "auto", "triton" (CUDA), "native" (CPU with a C++ compiler), "eager" (plain torch, any device) or
            "definition" (the plain formula through autograd; "auto" is it inside `lrlora.by_definition` and in
            transforms of torch.func).

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
    check_form(phi, c, carrier is not None)
    check_factors(A, B)
    if x.shape[-1] != A.shape[1]:
        raise ValueError(f"x ends in {x.shape[-1]} features, needed {A.shape[1]}, the columns of A {tuple(A.shape)}")
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if is_by_definition(impl):
        with without_autocast(x.device):
            return definition.adapted_linear(x, W0, bias, A, B, c, tau, scale, phi=phi, carrier=carrier)
    passes, _ = choose(impl, A, B)
    return _AdaptedLinear.apply(x, W0, bias, A, B, c, tau, scale, phi, *signs_of(passes, carrier, A, B), passes)  # pyright: ignore[reportReturnType]


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
    impl: Implementation = "auto",
) -> Float[Tensor, "out in"]:
    """dW = scale phi(B A), differentiable in A, B and c; keeps only these three for the backward pass.

    Arguments, returns and errors as for `lrlora.method.update.delta_weight`; impl as for `adapted_linear`.
    """
    check_form(phi, c, carrier is not None)
    check_factors(A, B)
    if is_by_definition(impl):
        with without_autocast(A.device):
            return definition.delta_weight(A, B, c, tau, scale, phi=phi, carrier=carrier, rows=rows)
    passes, _ = choose(impl, A, B)
    return _DeltaWeight.apply(A, B, c, tau, scale, phi, *signs_of(passes, carrier, A, B, rows), passes)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def adapted_weight(
    W0: Float[Tensor, "out in"] | None,
    A: Float[Tensor, "r in"],
    B: Float[Tensor, "out r"],
    c: Float[Tensor, " K"] | None,
    tau: Tensor | float,
    scale: float,
    *,
    phi: Form,
    carrier: Carrier | None = None,
    impl: Implementation = "auto",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "out in"]:
    """W0 + scale phi(B A), or only the update where W0 is None, without a graph.

    Arguments and errors as for `adapted_linear`; dtype: of the result; None means float32,
    or float64 for float64 factors.
    """
    check_form(phi, c, carrier is not None)
    check_factors(A, B)
    with without_autocast(A.device):
        if is_by_definition(impl):
            dW = definition.delta_weight(A, B, c, tau, scale, phi=phi, carrier=carrier)
            return (dW if W0 is None else W0 + dW).to(dtype or dW.dtype)
        passes, _ = choose(impl, A, B)
        factors = factors_in_precision(passes, A, B, c, tau, scale, phi, *signs_of(passes, carrier, A, B))
        return passes.weight(W0, factors, dtype or factors.A.dtype)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(x, W0, bias, A, B, c, tau, scale, phi, offset, sign, other_sign, passes) -> Tensor:
        with without_autocast(x.device):
            factors = factors_in_precision(passes, A, B, c, tau, scale, phi, offset, sign, other_sign)
            weight = passes.weight(W0, factors, x.dtype)
            y = linear(x, weight, None if bias is None else bias.to(x.dtype))
            # of a batch of sequences it is a view, which a model could not change in place
            return y if y._base is None or torch.compiler.is_compiling() else y.view_as(y).detach()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, W0, bias, A, B, c, tau, scale, phi, *signs, passes = inputs
        ctx.save_for_backward(x, A, B, c)
        # W0 and tau are alive in the module anyway; naming them here keeps the saved tensors to x, A, B and c
        ctx.W0, ctx.tau, ctx.scale, ctx.phi, ctx.signs, ctx.passes = W0, tau, scale, phi, signs, passes
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        (dy,) = grad_outputs
        x, A, B, c = ctx.saved_tensors
        needs_x, _, needs_bias, *needs_factors = ctx.needs_input_grad[:6]
        rows_of_x, rows_of_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        dx = dA = dB = dc = weight = None
        with without_autocast(x.device):
            factors = factors_in_precision(ctx.passes, A, B, c, ctx.tau, ctx.scale, ctx.phi, *ctx.signs)
            if any(needs_factors):
                weight = huge_pages.product(rows_of_dy.T, rows_of_x)
                dA, dB, dc = ctx.passes.gradients(weight, ctx.W0, factors)
            elif needs_x:
                weight = ctx.passes.weight(ctx.W0, factors, x.dtype)
            if weight is not None and needs_x:
                dx = (rows_of_dy @ weight).reshape(x.shape)
            dbias = rows_of_dy.sum(0).to(ctx.bias_dtype) if needs_bias else None
        dA, dB, dc = (None if g is None else g.to(like.dtype) for g, like in ((dA, A), (dB, B), (dc, c)))
        return dx, None, dbias, dA, dB, dc, *[None] * 7


# apply asks for it at every call, and would otherwise spend a quarter of Python's time here on making it
_AdaptedLinear.forward.__signature__ = inspect.signature(_AdaptedLinear.forward)  # pyright: ignore[reportFunctionMemberAccess]


class _DeltaWeight(torch.autograd.Function):
    @staticmethod
    def forward(A, B, c, tau, scale, phi, offset, sign, other_sign, passes) -> Tensor:
        with without_autocast(A.device):
            factors = factors_in_precision(passes, A, B, c, tau, scale, phi, offset, sign, other_sign)
            return passes.weight(None, factors, factors.A.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        A, B, c, ctx.tau, ctx.scale, ctx.phi, *ctx.signs, ctx.passes = inputs
        ctx.save_for_backward(A, B, c)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        A, B, c = ctx.saved_tensors
        with without_autocast(A.device):
            factors = factors_in_precision(ctx.passes, A, B, c, ctx.tau, ctx.scale, ctx.phi, *ctx.signs)
            # a copy: the passes overwrite it, and the caller may use it again
            G = grad_outputs[0].to(factors.A.dtype, copy=True, memory_format=torch.contiguous_format)
            gradients = ctx.passes.gradients(G, None, factors)
        dA, dB, dc = (None if g is None else g.to(t.dtype) for g, t in zip(gradients, (A, B, c), strict=True))
        return dA, dB, dc, *[None] * 7


def refuse_second_derivatives() -> None:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            "second derivatives (create_graph=True) are not implemented by the fused op; compute the output inside "
            "`with lrlora.by_definition():`, which keeps a graph of everything"
        )
