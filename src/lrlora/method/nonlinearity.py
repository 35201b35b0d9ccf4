"""phi: the learned elementwise function of LR-LoRA, its derivative, its basis and its first coefficients.

This file is the definition. It is written to be read and differentiated by autograd; `fast.py` computes the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

Form = Literal["sinc", "residual", "sine", "linear"]
FORMS: tuple[Form, ...] = ("sinc", "residual", "sine", "linear")


def grid(num_basis: int) -> Tensor:
    """The centres k = -M..M of the basis, in units of tau, with K = num_basis = 2M + 1.

    Raises:
        ValueError: num_basis is even or below 3.

    Example:
        >>> grid(3).tolist()
        [-1.0, 0.0, 1.0]
    """
    if num_basis < 3 or num_basis % 2 == 0:
        raise ValueError(f"num_basis must be odd and at least 3 (K = 2M + 1), got {num_basis}; pass 11, for example")
    half = num_basis // 2
    return torch.arange(-half, half + 1, dtype=torch.float32)


def initial_coefficients(num_basis: int, form: Form) -> Float[Tensor, " K"]:
    """The coefficients at which training starts: phi is close to the identity near 0, and dW = 0 where B = 0.

    "sinc": c_k proportional to k (1 - |k| / (M + 1)), scaled so that phi'(0) = sum_k c_k (-1)^(k+1) / k = 1. The
    Fejer weights keep that sum away from 0, which plain c_k = k does not for even M. "residual": c = 0, which is
    exactly LoRA. "linear": m = 1, LoRA as well. Source: ours; the paper's initialisation is not public.

    Args:
        num_basis: K, odd, at least 3; without effect on form "linear".
        form: "sinc", "residual" or "linear"; "sine" has no coefficients.

    Returns:
        c [K], float32.

    Raises:
        ValueError: an even or too small num_basis, or form "sine".

    Example:
        >>> initial_coefficients(3, "sinc").tolist()
        [-0.5, 0.0, 0.5]
    """
    if form == "linear":
        return torch.ones(1)
    k = grid(num_basis).double()
    if form == "residual":
        return torch.zeros(num_basis)
    if form != "sinc":
        raise ValueError(f"coefficients exist for the forms 'sinc', 'residual' and 'linear', got {form!r}")
    half = num_basis // 2
    c = k * (1 - k.abs() / (half + 1))
    # the centre, where c is 0, is divided by 1; picking the others by a mask would not work on the meta device
    slope = (c * alternating(k + 1) / torch.where(k == 0, 1.0, k)).sum()
    return (c / slope).float()


def alternating(k: Tensor) -> Tensor:
    """(-1)^k for whole numbers k held in a float tensor, exact for any size."""
    return 1 - 2 * (k - 2 * torch.floor(k / 2))


def sinc(u: Tensor) -> Tensor:
    """sin(pi u) / (pi u), with value 1 at 0, and with a derivative that is right near 0 in float32.

    torch.sinc's own backward cancels there: at u = 1e-4 it is off by a factor of 3.
    """
    return _Sinc.apply(u)  # pyright: ignore[reportReturnType]


def sinc_slope(u: Tensor) -> Tensor:
    """d sinc(u) / du = (cos(pi u) - sinc(u)) / u, and its Taylor series where |u| < 0.1."""
    near = u.abs() < 0.1
    safe = torch.where(near, torch.ones_like(u), u)
    away = (torch.cos(math.pi * safe) - torch.sinc(safe)) / safe
    x2 = (math.pi * u) ** 2
    series = -(math.pi**2) * u * (1 / 3 - x2 * (1 / 30 - x2 * (1 / 840 - x2 * (1 / 45360 - x2 / 3991680))))
    return torch.where(near, series, away)


class _Sinc(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        return torch.sinc(u)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad_outputs[0] * sinc_slope(u)

    @staticmethod
    def jvp(ctx, *tangents: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return tangents[0] * sinc_slope(u)


def phi(
    z: Float[Tensor, "*shape"],
    c: Float[Tensor, " K"] | None,
    tau: Tensor | float,
    form: Form,
    delta: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """The elementwise nonlinearity of LR-LoRA, phi(z) = tau (f(z / tau + delta) - f(delta)), with delta = 0.

    f(u) = sum_{k != 0} c_k sinc(u - k) for form "sinc" (arXiv:2606.04325, in our reading of its grid),
    f(u) = u + the same sum for form "residual" (ours), and phi(z) = sin(z / tau) for form "sine" (Sine-LoRA,
    arXiv:2403.19243, with omega = 1 / tau). phi(z) = (m + g sign(delta)) z for form "linear", the limit of the others
    for a large tau: it has no knee. phi(0) = 0 for every c: a non-zero phi(0) would add a constant matrix.

    Args:
        z: entries of B A.
        c: coefficients [K] of the basis; the middle one has no effect. For form "linear" (m, g) with delta and (m,)
            without it; None for form "sine".
        tau: knee, in the units of z, above 0. tau = inf gives phi(z) = z for the forms "sinc" and "residual".
        form: which f.
        delta: where phi is used, entry by entry, in units of tau (`carrier.py`: offset sigma); None means at 0. The
            middle coefficient counts then.

    Returns:
        phi(z), in the shape and dtype of z.

    Raises:
        ValueError: an unknown form, c missing where the form needs it, or delta with form "sine".

    Example:
        >>> phi(torch.tensor([0.0, 0.5]), torch.tensor([-0.5, 0.0, 0.5]), 1.0, "sinc")
        tensor([0.0000, 0.4244])
    """
    check_form(form, c, delta is not None)
    tau = torch.as_tensor(tau, dtype=z.dtype, device=z.device)
    if form == "sine":
        return torch.sin(z / tau)
    assert c is not None
    if form == "linear":
        return _linear_slope(c.to(z.dtype), delta) * z
    height, linear = split_tau(tau, form)
    u = z / tau
    k = grid(len(c)).to(z)
    if delta is None:
        lifted = sinc(u.unsqueeze(-1) - k) - sinc(-k)
        return linear * z + height * (lifted * without_centre(c).to(z.dtype)).sum(-1)
    lifted = sinc((u + delta).unsqueeze(-1) - k) - sinc(delta.unsqueeze(-1) - k)
    return linear * z + height * (lifted * c.to(z.dtype)).sum(-1)


def phi_slope(
    z: Float[Tensor, "*shape"],
    c: Float[Tensor, " K"] | None,
    tau: Tensor | float,
    form: Form,
    delta: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """phi'(z) = f'(z / tau + delta), the derivative that the gradients of A and B need.

    Arguments, errors and source as for `phi`.

    Example:
        >>> phi_slope(torch.tensor([0.0]), torch.tensor([-0.5, 0.0, 0.5]), 1.0, "sinc")
        tensor([1.])
    """
    check_form(form, c, delta is not None)
    tau = torch.as_tensor(tau, dtype=z.dtype, device=z.device)
    if form == "sine":
        return torch.cos(z / tau) / tau
    assert c is not None
    if form == "linear":
        return _linear_slope(c.to(z.dtype), delta).expand_as(z)
    _, linear = split_tau(tau, form)
    k = grid(len(c)).to(z)
    u = z / tau if delta is None else z / tau + delta
    slopes = sinc_slope(u.unsqueeze(-1) - k)
    is_shaped = torch.isfinite(tau).to(z.dtype)
    return linear + is_shaped * (slopes * (without_centre(c) if delta is None else c).to(z.dtype)).sum(-1)


def _linear_slope(c: Tensor, delta: Tensor | None) -> Tensor:
    return c[0] if delta is None else c[0] + c[1] * delta.sign()


def split_tau(tau: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """phi(z) = linear z + height sum_k c_k (...): the two factors, with tau = inf as the limit in which phi is z."""
    is_shaped = torch.isfinite(tau)
    height = torch.where(is_shaped, tau, torch.zeros_like(tau))
    linear = torch.ones_like(tau) if form == "residual" else (~is_shaped).to(tau.dtype)
    return height, linear


def without_centre(c: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """c with c_0 = 0: f(0) = c_0 is subtracted anyway, and sinc(u) - 1 is the even function that would tilt phi."""
    half = len(c) // 2
    return torch.cat([c[:half], torch.zeros_like(c[:1]), c[half + 1 :]])


def check_form(form: str, c: Tensor | None, is_carried: bool = False) -> None:
    """Raise ValueError where the form is unknown, takes no carrier, or its coefficients are missing or superfluous."""
    if form not in FORMS:
        raise ValueError(f"phi must be one of {', '.join(FORMS)}, got {form!r}")
    if (form == "sine") != (c is None):
        need = "no coefficients" if form == "sine" else "coefficients c [K]"
        raise ValueError(f"phi={form!r} takes {need}, got c={'None' if c is None else tuple(c.shape)}")
    if is_carried and form == "sine":
        raise ValueError("phi='sine' has no coefficients that could learn a gate, and takes no carrier")
    if form == "linear" and c is not None and c.shape[-1] != 1 + is_carried:
        need = "c [2], m and g, with a carrier" if is_carried else "c [1], m, without a carrier"
        raise ValueError(f"phi='linear' takes {need}, got {tuple(c.shape)}")
