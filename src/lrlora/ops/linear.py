"""The adapted linear map as one autograd.Function that keeps nothing of size out x in for the backward pass.

The plain formula, differentiated by autograd, keeps several K x out x in tensors per layer. Z, phi and phi' are cheap
to compute from A, B and c, so they are computed again instead. What is lost: one more evaluation of phi per step.

In float32 on a CPU a layer of 32 MiB or more is computed a tile of its rows at a time, the products included: a matrix
of its size is then never in memory. In half precision dX, a sum over the tiles, would be rounded with every tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import linear

from lrlora.method import update as definition
from lrlora.method.carrier import Carrier
from lrlora.method.nonlinearity import Form, check_form
from lrlora.method.update import check_factors
from lrlora.ops import huge_pages
from lrlora.ops.dispatch import Implementation, choose, is_by_definition
from lrlora.ops.passes import Factors, factors_in_precision, signs_of, without_autocast

if TYPE_CHECKING:
    from jaxtyping import Float

TILED_FROM = 1 << 25
"""Bytes of a layer on a CPU from which it is computed in tiles: malloc gives a matrix of this size, 32 MiB, back to the
kernel when it is freed, and takes it anew, page by page, for the next layer."""

TILE = 1 << 22
"""Entries of such a tile: it stays in the third cache, and dX is read and written again once per tile."""


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
    def forward(ctx, x, W0, bias, A, B, c, tau, scale, phi, offset, sign, other_sign, passes) -> Tensor:
        ctx.save_for_backward(x, A, B, c)
        # W0 and tau are alive in the module anyway; naming them here keeps the saved tensors to x, A, B and c
        ctx.W0, ctx.tau, ctx.scale, ctx.phi, ctx.passes = W0, tau, scale, phi, passes
        ctx.signs = offset, sign, other_sign
        ctx.bias_dtype = None if bias is None else bias.dtype
        with without_autocast(x.device):
            factors = factors_in_precision(passes, A, B, c, tau, scale, phi, *ctx.signs)
            bias = None if bias is None else bias.to(x.dtype)
            parts = _parts_of(x, W0, factors)
            if len(parts) == 1:
                y = linear(x, passes.weight(W0, factors, x.dtype), bias)
                # of a batch of sequences it is a view, which a model could not change in place
                return y if y._base is None or torch.compiler.is_compiling() else y.view_as(y).detach()
            y = x.new_empty(*x.shape[:-1], B.shape[0])
            rows_of_x, rows_of_y = x.reshape(-1, x.shape[-1]), y.view(-1, B.shape[0])
            for rows, W0_of_rows, own in parts:
                weight = passes.weight(W0_of_rows, own, x.dtype)
                rows_of_y[:, rows] = linear(rows_of_x, weight, None if bias is None else bias[rows])
                del weight
            return y

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        (dy,) = grad_outputs
        x, A, B, c = ctx.saved_tensors
        needs_x, _, needs_bias, *needs_factors = ctx.needs_input_grad[:6]
        rows_of_x, rows_of_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        if any(needs_factors):
            refuse_batched_gradients(dy)
        dx, gradients = None, []
        with without_autocast(x.device):
            factors = factors_in_precision(ctx.passes, A, B, c, ctx.tau, ctx.scale, ctx.phi, *ctx.signs)
            numbers = None if _is_batched(dy) else ctx.passes.nonzero_rows(dy, factors)
            if numbers is not None:
                rows_of_x, rows_of_dy = rows_of_x.index_select(0, numbers), rows_of_dy.index_select(0, numbers)
            parts = _parts_of(x, ctx.W0, factors)
            for rows, W0, own in parts:
                dy_of_rows = rows_of_dy if len(parts) == 1 else rows_of_dy[:, rows]
                weight = None
                if any(needs_factors):
                    weight = huge_pages.product(dy_of_rows.T, rows_of_x)
                    gradients.append(ctx.passes.gradients(weight, W0, own))
                elif needs_x:
                    weight = ctx.passes.weight(W0, own, x.dtype)
                if weight is not None and needs_x:
                    dx = dy_of_rows @ weight if dx is None else dx.addmm_(dy_of_rows, weight)
                del weight
            if dx is not None and numbers is not None:
                dx = dx.new_zeros(x.shape).view(-1, x.shape[-1]).index_copy_(0, numbers, dx)
            dx = None if dx is None else dx.reshape(x.shape)
            dbias = rows_of_dy.sum(0).to(ctx.bias_dtype) if needs_bias else None
        dA, dB, dc = (None if g is None else g.to(t.dtype) for g, t in zip(_whole(gradients), (A, B, c), strict=True))
        return dx, None, dbias, dA, dB, dc, *[None] * 7


def _parts_of(x: Tensor, W0: Tensor | None, factors: Factors) -> list[tuple[slice, Tensor | None, Factors]]:
    """What is computed at a time, as rows of the weight, W0 and factors: the whole layer, or tiles of a large one."""
    rows, columns = factors.B.shape[0], factors.A.shape[1]
    is_large = x.dtype == torch.float32 and x.device.type == "cpu" and 4 * rows * columns >= TILED_FROM
    if not is_large or torch.compiler.is_compiling() or not (W0 is None or type(W0) in (Tensor, Parameter)):
        return [(slice(0, rows), W0, factors)]
    # rows of an odd number would make the products slower
    step = 64 * max(1, round(TILE / columns / 64))
    tiles = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    return [(tile, None if W0 is None else W0[tile], factors.of_rows(tile)) for tile in tiles]


def _whole(parts: list[tuple[Tensor, Tensor, Tensor | None]]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dL/dA, dL/dB and dL/dc of a layer from those of its tiles."""
    if len(parts) < 2:
        return parts[0] if parts else (None, None, None)
    of_A, of_B, of_c = zip(*parts, strict=True)
    dc = None if of_c[0] is None else torch.stack(of_c).sum(0)
    return torch.stack(of_A).sum(0), torch.cat(of_B), dc


class _DeltaWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, A, B, c, tau, scale, phi, offset, sign, other_sign, passes) -> Tensor:
        ctx.save_for_backward(A, B, c)
        ctx.tau, ctx.scale, ctx.phi, ctx.signs, ctx.passes = tau, scale, phi, (offset, sign, other_sign), passes
        with without_autocast(A.device):
            factors = factors_in_precision(passes, A, B, c, tau, scale, phi, *ctx.signs)
            return passes.weight(None, factors, factors.A.dtype)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        refuse_batched_gradients(grad_outputs[0])
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


def refuse_batched_gradients(dy: Tensor) -> None:
    if _is_batched(dy):
        raise RuntimeError(
            "gradients for several dL/dy at once (is_grads_batched=True) are not implemented by the fused op; compute "
            "the output inside `with lrlora.by_definition():`, or take them one by one"
        )


def _is_batched(dy: Tensor) -> bool:
    """Whether this gradient stands for several (is_grads_batched=True): it then has no memory for passes to read."""
    if type(dy) is not Tensor or torch.compiler.is_compiling():
        return False
    try:
        dy.data_ptr()
    except RuntimeError:
        return True
    return False
