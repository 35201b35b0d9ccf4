"""phi and its gradients with one polynomial per entry for all K sincs: no trigonometric call, no 0/0, no K-fold tensor.

With u = z / tau, j = round(u) and g = u - j in [-1/2, 1/2], sinc(g) = P(g^2) and cos(pi g) = C(g^2) are even
polynomials, sin(pi u) / pi = (-1)^j g P(g^2), and so

    sinc(u - k)  = P                            where k = j
                 = (-1)^(j-k) g P v             elsewhere, v = 1 / (u - k), |u - k| >= 1/2
    sinc'(u - k) = 2 g P'(g^2)                  where k = j
                 = (-1)^(j-k) (C - g P v) v     elsewhere

The sums over k are then sums of v and v^2. One division serves a centre and its mirror image, since
1 / (u - k) = (u + k) r and 1 / (u + k) = (u - k) r with r = 1 / ((u - k) (u + k)). P and C are Taylor polynomials:
seven terms are exact to 4e-10 for |g| <= 1/2 (float32), eleven to 1e-17 (float64). Derivation: ours.

The functions are plain torch, so that `lrlora.ops` runs them as they stand, and compiles them too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrlora.method.nonlinearity import Form, check_form, split_tau

if TYPE_CHECKING:
    from jaxtyping import Float


def phi(
    z: Float[Tensor, "*shape"], c: Float[Tensor, " K"] | None, tau: Tensor | float, form: Form
) -> Float[Tensor, "*shape"]:
    """`nonlinearity.phi`, evaluated fast; same arguments, errors and source. Keeps no graph: call it under no_grad.

    Example:
        >>> phi(torch.tensor([0.0, 0.5]), torch.tensor([-0.5, 0.0, 0.5]), 1.0, "sinc")
        tensor([0.0000, 0.4244])
    """
    check_form(form, c)
    tau = torch.as_tensor(tau, dtype=z.dtype, device=z.device)
    if form == "sine":
        return torch.sin(z / tau)
    assert c is not None
    height, linear = split_tau(tau, form)
    u, j, g, sign = _cell(z / tau)
    at_centre, sum_of_v = torch.zeros_like(u), torch.zeros_like(u)
    for weight, centre, is_centre, v in _terms(u, j, c):
        at_centre = torch.where(is_centre, centre, at_centre)
        sum_of_v = sum_of_v + weight * v
    return linear * z + height * _sinc_polynomial(g) * (at_centre + sign * g * sum_of_v)


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
    tau = torch.as_tensor(tau, dtype=z.dtype, device=z.device)
    if form == "sine":
        return torch.sin(z / tau), upstream * torch.cos(z / tau) / tau, None
    assert c is not None
    height, linear = split_tau(tau, form)
    u, j, g, sign = _cell(z / tau)
    p = _sinc_polynomial(g)
    near = height * upstream * p
    away = sign * g * near
    at_centre, sum_of_v, sum_of_squares = (torch.zeros_like(u) for _ in range(3))
    dc: list[Tensor] = []
    for weight, centre, is_centre, v in _terms(u, j, c):
        at_centre = torch.where(is_centre, centre, at_centre)
        sum_of_v = sum_of_v + weight * v
        sum_of_squares = sum_of_squares + weight * v * v
        # terms come as k = 1, -1, 2, -2, ...
        alternating = -1 if len(dc) // 2 % 2 == 0 else 1
        dc.append(torch.where(is_centre, near, alternating * away * v).sum(-1))
    value = linear * z + height * p * (at_centre + sign * g * sum_of_v)
    slope = sign * (_cosine_polynomial(g) * sum_of_v - g * p * sum_of_squares) + at_centre * _sinc_slope_polynomial(g)
    is_shaped = torch.isfinite(tau).to(z.dtype)
    ordered = torch.stack([*dc[1::2][::-1], torch.zeros_like(dc[0]), *dc[0::2]], dim=-1)
    return value, upstream * (linear + is_shaped * slope), ordered


def _cell(u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, the nearest whole number j, the distance g = u - j, and (-1)^j, exact for any size of j."""
    j = torch.round(u)
    return u, j, u - j, 1 - 2 * (j - 2 * torch.floor(j / 2))


def _terms(u: Tensor, j: Tensor, c: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For k = 1, -1, 2, -2, ..., M, -M: c_k (-1)^k, c_k, where j = k, and 1 / (u - k) (0 where j = k)."""
    c = c.to(u.dtype)
    half = len(c) // 2
    for k in range(1, half + 1):
        is_plus, is_minus = j == k, j == -k
        from_plus, from_minus = torch.where(is_plus, 1, u - k), torch.where(is_minus, 1, u + k)
        r = 1 / (from_plus * from_minus)
        plus, minus = c[half + k], c[half - k]
        sign = (-1) ** k
        yield sign * plus, plus, is_plus, torch.where(is_plus, 0, from_minus * r)
        yield sign * minus, minus, is_minus, torch.where(is_minus, 0, from_plus * r)


def _sinc_polynomial(g: Tensor) -> Tensor:
    """P(g^2) = sinc(g)."""
    return _polynomial(_series(g), g * g)


def _cosine_polynomial(g: Tensor) -> Tensor:
    """C(g^2) = cos(pi g), the derivative of g P(g^2)."""
    return _polynomial([(2 * n + 1) * a for n, a in enumerate(_series(g))], g * g)


def _sinc_slope_polynomial(g: Tensor) -> Tensor:
    """d P(g^2) / dg = 2 g P'(g^2)."""
    return 2 * g * _polynomial([n * a for n, a in enumerate(_series(g))][1:], g * g)


def _series(g: Tensor) -> list[float]:
    terms = 11 if g.dtype == torch.float64 else 7
    return [(-1) ** n * math.pi ** (2 * n) / math.factorial(2 * n + 1) for n in range(terms)]


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for a in reversed(coefficients[:-1]):
        value = value * x + a
    return value
