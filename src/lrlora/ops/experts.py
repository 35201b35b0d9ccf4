"""The adapted weights of a stack of experts, each with an update of its own, for layers that read a 3-D parameter.

The layer multiplies with the weights itself, so they have to be there as one tensor, as large as the parameter. In
addition, only A, B and c are kept for the backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrlora.method import update as definition
from lrlora.method.carrier import Carrier
from lrlora.method.nonlinearity import Form, check_form
from lrlora.ops.dispatch import Implementation, choose, is_by_definition
from lrlora.ops.linear import refuse_batched_gradients, refuse_second_derivatives
from lrlora.ops.passes import Factors, Passes, factors_in_precision, signs_of, without_autocast

if TYPE_CHECKING:
    from jaxtyping import Float


def experts_weight(
    W0: Float[Tensor, "experts out in"] | None,
    A: Float[Tensor, "experts r in"],
    B: Float[Tensor, "experts out r"],
    c: Float[Tensor, "experts K"] | Float[Tensor, " K"] | None,
    tau: Float[Tensor, " experts"],
    scale: float,
    *,
    phi: Form,
    carrier: Carrier | None = None,
    impl: Implementation = "auto",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "experts out in"]:
    """W0[e] + scale phi_e(B[e] A[e]) of every expert e, differentiable in A, B and c; W0 gets no gradient.

    An expert whose weight got no gradient, because no token came to it, costs nothing in the backward pass.

    Args:
        W0: frozen weights [experts, out, in], or None for the updates only.
        A: first factors [experts, r, in].
        B: second factors [experts, out, r].
        c: coefficients of every expert [experts, K], or [K] where all share them; None for phi = "sine".
        tau: knee of every expert [experts], in the units of B A.
        scale: alpha / r, or alpha / sqrt(r) with rsLoRA.
        phi: "sinc", "residual", "sine" or "linear".
        carrier: as for `adapted_linear`; every expert has signs of its own, by `carrier.of_expert`.
        impl: as for `adapted_linear`.
        dtype: of the result; None means that of W0, float32 without W0.

    Returns:
        The weights [experts, out, in].

    Raises:
        ValueError: an unknown impl or phi, or shapes that do not fit.
    """
    check_form(phi, _of_expert(c, 0), carrier is not None)
    if A.ndim != 3 or B.ndim != 3 or len(A) != len(B) or A.shape[1] != B.shape[2] or tau.shape != A.shape[:1]:
        raise ValueError(
            f"needed A [experts, r, in], B [experts, out, r] and tau [experts], got A {tuple(A.shape)}, "
            f"B {tuple(B.shape)} and tau {tuple(tau.shape)}"
        )
    dtype = dtype or (torch.float32 if W0 is None else W0.dtype)
    if is_by_definition(impl):
        with without_autocast(A.device):
            dW = _updates(A, B, c, tau, scale, phi, carrier)
            return (dW if W0 is None else W0 + dW).to(dtype)
    passes, _ = choose(impl, A[0], B[0])
    return _ExpertsWeight.apply(W0, A, B, c, tau, scale, phi, *(carrier or (0.0, None)), passes, dtype)  # pyright: ignore[reportReturnType]


def _updates(
    A: Tensor, B: Tensor, c: Tensor | None, tau: Tensor, scale: float, phi: Form, carrier: Carrier | None
) -> Tensor:
    """scale phi_e(B[e] A[e]) of every expert, by the plain formula."""
    updates = []
    for e in range(len(A)):
        own = None if carrier is None else carrier.of_expert(e)
        updates.append(definition.delta_weight(A[e], B[e], _of_expert(c, e), tau[e], scale, phi=phi, carrier=own))
    return torch.stack(updates)


class _ExpertsWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, W0, A, B, c, tau, scale, phi, offset, seed, passes, dtype) -> Tensor:
        ctx.save_for_backward(A, B, c)
        ctx.tau, ctx.scale, ctx.phi, ctx.passes = tau, scale, phi, passes
        ctx.carrier = carrier = None if seed is None else Carrier(offset, seed)
        weights = torch.empty(A.shape[0], B.shape[1], A.shape[2], dtype=dtype, device=A.device)
        with without_autocast(A.device):
            for e in range(len(A)):
                factors = _factors_of(passes, e, A, B, c, tau, scale, phi, carrier)
                weights[e] = passes.weight(None if W0 is None else W0[e], factors, dtype)
        return weights

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        refuse_second_derivatives()
        refuse_batched_gradients(grad_outputs[0])
        A, B, c = ctx.saved_tensors
        (gradient,) = grad_outputs
        dA, dB = torch.zeros_like(A), torch.zeros_like(B)
        dc = None if c is None else torch.zeros_like(c)
        with without_autocast(A.device):
            for e in _experts_with_gradient(gradient):
                factors = _factors_of(ctx.passes, e, A, B, c, ctx.tau, ctx.scale, ctx.phi, ctx.carrier)
                # a copy: the passes overwrite it
                G = gradient[e].to(factors.A.dtype, copy=True, memory_format=torch.contiguous_format)
                dA[e], dB[e], dc_of_expert = ctx.passes.gradients(G, None, factors)
                own_dc = _of_expert(dc, e)
                if own_dc is not None and dc_of_expert is not None:
                    own_dc.add_(dc_of_expert)
        return None, dA, dB, dc, *[None] * 7


def _factors_of(
    passes: Passes,
    e: int,
    A: Tensor,
    B: Tensor,
    c: Tensor | None,
    tau: Tensor,
    scale: float,
    phi: Form,
    carrier: Carrier | None,
) -> Factors:
    signs = signs_of(passes, None if carrier is None else carrier.of_expert(e), A[e], B[e])
    return factors_in_precision(passes, A[e], B[e], _of_expert(c, e), tau[e], scale, phi, *signs)


def _of_expert(c: Tensor | None, e: int) -> Tensor | None:
    return c if c is None or c.ndim == 1 else c[e]


def _experts_with_gradient(gradient: Tensor) -> list[int]:
    if torch.compiler.is_compiling():
        return list(range(len(gradient)))
    return gradient.flatten(1).any(1).nonzero().flatten().tolist()
