"""phi and its gradients with one polynomial per entry for all K sincs: no trigonometric call, no 0/0, no K-fold tensor.

With u = z / tau, j = round(u) and g = u - j in [-1/2, 1/2], sinc(g) = P(g^2) and cos(pi g) = C(g^2) are even
polynomials, sin(pi u) / pi = (-1)^j g P(g^2), and so

    sinc(u - k)  = P                            where k = j
                 = (-1)^(j-k) g P v             elsewhere, v = 1 / (u - k), |u - k| >= 1/2
    sinc'(u - k) = 2 g P'(g^2)                  where k = j
                 = (-1)^(j-k) (C - g P v) v     elsewhere

The sums over k are then sums of v and v^2. One division serves a centre and its mirror image, since
1 / (u - k) = (u + k) r and 1 / (u + k) = (u - k) r with r = 1 / ((u - k) (u + k)). Where j = k the second line gives
the first as well, g P / g = P, if g = 0 is replaced by a number too small to matter. P and C are Taylor polynomials:
seven terms are exact to 4e-10 for |g| <= 1/2 (float32), eleven to 1e-17 (float64). Derivation: ours.

The functions are plain torch, so that `lrlora.ops` runs them as they stand, and compiles them too. What does not depend
on z is worked out beforehand, into a `Knee`: inside a compiled loop it would be done again for every entry.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lrlora.method.nonlinearity import Form, alternating, check_form, split_tau

if TYPE_CHECKING:
    from jaxtyping import Float


class Knee(NamedTuple):
    """scale phi as numbers: value linear z + height sum_k c_k (...), slope linear + bend sum_k c_k (...)."""

    tau: Tensor
    height: Tensor
    linear: Tensor
    bend: Tensor


def knee(tau: Tensor | float, scale: Tensor | float, form: Form, like: Tensor) -> Knee:
    """The numbers of scale phi, in the dtype and on the device of `like`; at tau = inf, phi is the identity."""
    tau = torch.as_tensor(tau, dtype=like.dtype, device=like.device)
    scale = torch.as_tensor(scale, dtype=like.dtype, device=like.device)
    if form == "sine":
        return Knee(tau, scale, torch.zeros_like(tau), scale / tau)
    height, linear = split_tau(tau, form)
    return Knee(tau, scale * height, scale * linear, scale * torch.isfinite(tau))


def phi(
    z: Float[Tensor, "*shape"], c: Float[Tensor, " K"] | None, tau: Tensor | float, form: Form
) -> Float[Tensor, "*shape"]:
    """`nonlinearity.phi`, evaluated fast; same arguments, errors and source. Keeps no graph: call it under no_grad.

    Example:
        >>> phi(torch.tensor([0.0, 0.5]), torch.tensor([-0.5, 0.0, 0.5]), 1.0, "sinc")
        tensor([0.0000, 0.4244])
    """
    check_form(form, c)
    return scaled_phi(z, c, knee(tau, 1.0, form, z), form)


def scaled_phi(z: Tensor, c: Tensor | None, at: Knee, form: Form) -> Tensor:
    """scale phi(z), for c in the dtype of z."""
    if form == "sine":
        return at.height * torch.sin(z / at.tau)
    assert c is not None
    j, g, sign = _cell(z / at.tau)
    g = torch.where((g == 0) & (j != 0), TINY, g)
    total = torch.zeros_like(z)
    half = len(c) // 2
    for k in range(1, half + 1):
        from_plus, from_minus = (j - k) + g, (j + k) + g
        both = (c[half + k] * from_minus + c[half - k] * from_plus) / (from_plus * from_minus)
        total = total - both if k % 2 else total + both
    return at.linear * z + at.height * _sinc_polynomial(g) * (sign * g * total)


def phi_and_gradients(
    z: Float[Tensor, "*shape"],
    upstream: Float[Tensor, "*shape"],
    c: Float[Tensor, " K"] | None,
    tau: Tensor | float,
    form: Form,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*rows K"] | None]:
    """phi(z), and from upstream = dL/dphi the gradients of z and c, in one pass.

    dL/dz = upstream phi'(z);   dL/dc_k = tau sum over entries of upstream (sinc(z / tau - k) - sinc(-k)), 0 for k = 0.

    Args:
        z: entries of B A.
        upstream: dL/dphi(z).
        c: coefficients [K], None for form "sine".
        tau: knee, in the units of z; at tau = inf, phi is the identity and c has no gradient.
        form: which f.

    Returns:
        phi(z); dL/dz; dL/dc summed over the last axis of z alone, [*rows, K] (a pass over rows sums them on its way),
        or None for form "sine".

    Raises:
        ValueError: as `nonlinearity.phi`.

    Example:
        >>> z, c = torch.tensor([[0.0, 0.5]]), torch.tensor([-0.5, 0.0, 0.5])
        >>> [t.shape for t in phi_and_gradients(z, torch.ones(1, 2), c, 1.0, "sinc")]
        [torch.Size([1, 2]), torch.Size([1, 2]), torch.Size([1, 3])]
    """
    check_form(form, c)
    return scaled_phi_and_gradients(z, upstream, c, knee(tau, 1.0, form, z), form)


def scaled_phi_and_gradients(
    z: Tensor, upstream: Tensor, c: Tensor | None, at: Knee, form: Form
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `phi_and_gradients`, of scale phi."""
    if form == "sine":
        u = z / at.tau
        return at.height * torch.sin(u), upstream * at.bend * torch.cos(u), None
    assert c is not None
    j, g, sign = _cell(z / at.tau)
    p = _sinc_polynomial(g)
    near_g = torch.where((g == 0) & (j != 0), TINY, g)
    away = sign * near_g * (at.height * upstream * p)
    at_centre, total, total_of_squares = (torch.zeros_like(z) for _ in range(3))
    half = len(c) // 2
    dc = [torch.zeros_like(z).sum(-1)] * len(c)
    for k in range(1, half + 1):
        plus, minus = c[half + k], c[half - k]
        is_plus, is_minus = j == k, j == -k
        from_plus, from_minus = (j - k) + near_g, (j + k) + near_g
        r = 1 / (from_plus * from_minus)
        v_plus, v_minus = from_minus * r, from_plus * r
        of_k = -1 if k % 2 else 1
        dc[half + k], dc[half - k] = (of_k * away * v_plus).sum(-1), (of_k * away * v_minus).sum(-1)
        at_centre = torch.where(is_plus, plus, torch.where(is_minus, minus, at_centre))
        # the slope near a centre has a formula of its own: this one would cancel there
        v_plus, v_minus = torch.where(is_plus, 0, v_plus), torch.where(is_minus, 0, v_minus)
        weighted_plus, weighted_minus = plus * v_plus, minus * v_minus
        total = total + of_k * (weighted_plus + weighted_minus)
        total_of_squares = total_of_squares + of_k * (weighted_plus * v_plus + weighted_minus * v_minus)
    value = at.linear * z + at.height * p * (at_centre + sign * g * total)
    slope = sign * (_cosine_polynomial(g) * total - g * p * total_of_squares) + at_centre * _sinc_slope_polynomial(g)
    return value, upstream * (at.linear + at.bend * slope), torch.stack(dc, dim=-1)


TINY = 1e-18
"""Stands for g = 0 on a centre: its square is still a float32, and v = 1 / TINY as well."""


def _cell(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest whole number j, the distance g = u - j, and (-1)^j."""
    j = torch.round(u)
    return j, u - j, alternating(j)


def _sinc_polynomial(g: Tensor) -> Tensor:
    """P(g^2) = sinc(g)."""
    return _polynomial(SINC_SERIES[g.dtype], g * g)


def _cosine_polynomial(g: Tensor) -> Tensor:
    """C(g^2) = cos(pi g), the derivative of g P(g^2)."""
    return _polynomial(_COSINE[g.dtype], g * g)


def _sinc_slope_polynomial(g: Tensor) -> Tensor:
    """d P(g^2) / dg = 2 g P'(g^2)."""
    return 2 * g * _polynomial(_SINC_SLOPE[g.dtype], g * g)


# worked out here and not where they are used: torch.compile would work them out again for every entry
_TERMS = {torch.float32: 7, torch.float64: 11}
SINC_SERIES = {
    dtype: tuple((-1) ** n * math.pi ** (2 * n) / math.factorial(2 * n + 1) for n in range(terms))
    for dtype, terms in _TERMS.items()
}
_COSINE = {dtype: tuple((2 * n + 1) * a for n, a in enumerate(series)) for dtype, series in SINC_SERIES.items()}
_SINC_SLOPE = {dtype: tuple(n * a for n, a in enumerate(series))[1:] for dtype, series in SINC_SERIES.items()}


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for a in reversed(coefficients[:-1]):
        value = value * x + a
    return value
