"""phi and its gradients with one polynomial per entry for all K sincs: no trigonometric call, no 0/0, no K-fold tensor.

With u = z / tau, j = round(u) and g = u - j in [-1/2, 1/2], sinc(g) = P(g^2) and cos(pi g) = C(g^2) are even
polynomials, sin(pi u) / pi = (-1)^j g P(g^2), and so

    sinc(u - k)  = P                            where k = j
                 = (-1)^(j-k) g P v             elsewhere, v = 1 / (u - k), |u - k| >= 1/2
    sinc'(u - k) = 2 g P'(g^2)                  where k = j
                 = (-1)^(j-k) (C - g P v) v     elsewhere

The sums over k are then sums of v and v^2. P and C are Taylor polynomials: seven terms are exact to 4e-10 for
|g| <= 1/2 (float32), eleven to 1e-17 (float64). Derivation: ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrlora.method.nonlinearity import Form, alternating, check_form, split_tau

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
    cell = _Cell.of(z / tau, len(c))
    at_centre, off_centre, _ = _sums(cell, c, with_squares=False)
    return linear * z + height * cell.p * (at_centre + cell.signed_g * off_centre)


def phi_and_slope(
    z: Float[Tensor, "*shape"], c: Float[Tensor, " K"] | None, tau: Tensor | float, form: Form
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """phi(z) and phi'(z) in one pass; arguments, errors and source as for `nonlinearity.phi`."""
    check_form(form, c)
    tau = torch.as_tensor(tau, dtype=z.dtype, device=z.device)
    if form == "sine":
        return torch.sin(z / tau), torch.cos(z / tau) / tau
    assert c is not None
    height, linear = split_tau(tau, form)
    is_shaped = torch.isfinite(tau).to(z.dtype)
    cell = _Cell.of(z / tau, len(c))
    at_centre, first, second = _sums(cell, c, with_squares=True)
    value = linear * z + height * cell.p * (at_centre + cell.signed_g * first)
    slope = cell.sign * (cell.cosine * first - cell.g * cell.p * second) + at_centre * 2 * cell.g * cell.p_slope
    return value, linear + is_shaped * slope


def coefficient_gradient(
    z: Float[Tensor, "*shape"], upstream: Float[Tensor, "*shape"], num_basis: int, tau: Tensor | float
) -> Float[Tensor, " K"]:
    """dL/dc_k = tau < dL/dphi, sinc(z / tau - k) - sinc(-k) > for k != 0, and 0 for k = 0.

    Args:
        z: entries of B A.
        upstream: dL/dphi(z), same shape.
        num_basis: K.
        tau: knee, in the units of z; at tau = inf the gradient is 0.

    Returns:
        [K], in the dtype of z.
    """
    tau = torch.as_tensor(tau, dtype=z.dtype, device=z.device)
    height, _ = split_tau(tau, "sinc")
    cell = _Cell.of(z / tau, num_basis)
    near = upstream * cell.p
    away = near * cell.signed_g
    half = num_basis // 2
    gradient = [torch.zeros((), dtype=z.dtype, device=z.device)] * num_basis
    for k in range(-half, half + 1):
        if k != 0:
            is_centre = cell.j == k
            distance = torch.where(is_centre, 1, cell.u - k)
            gradient[k + half] = torch.where(is_centre, near, away * (-1) ** k / distance).sum()
    return height * torch.stack(gradient)


@dataclass
class _Cell:
    """Where each entry lies on the grid, and the polynomials of its distance g to the nearest whole number j."""

    u: Tensor
    j: Tensor
    g: Tensor
    sign: Tensor  # (-1)^j
    signed_g: Tensor  # (-1)^j g
    p: Tensor  # sinc(g)
    terms: int

    @classmethod
    def of(cls, u: Tensor, num_basis: int) -> _Cell:
        j = torch.round(u)
        g = u - j
        sign = alternating(j)
        terms = 11 if u.dtype == torch.float64 else 7
        return cls(u, j, g, sign, sign * g, _polynomial(_sinc_series(terms), g * g), terms)

    @property
    def cosine(self) -> Tensor:
        series = [(2 * n + 1) * a for n, a in enumerate(_sinc_series(self.terms))]
        return _polynomial(series, self.g * self.g)

    @property
    def p_slope(self) -> Tensor:
        """P'(g^2), the derivative by g^2."""
        series = [n * a for n, a in enumerate(_sinc_series(self.terms))][1:]
        return _polynomial(series, self.g * self.g)


def _sinc_series(terms: int) -> list[float]:
    return [(-1) ** n * math.pi ** (2 * n) / math.factorial(2 * n + 1) for n in range(terms)]


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for a in reversed(coefficients[:-1]):
        value = value * x + a
    return value


def _sums(cell: _Cell, c: Tensor, *, with_squares: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficient of the centre that each entry is nearest to, and over the others sum c_k (-1)^k v and v^2."""
    half = len(c) // 2
    centre, first, second = (torch.zeros_like(cell.u) for _ in range(3))
    for k in range(-half, half + 1):
        if k == 0:
            continue
        is_centre = cell.j == k
        v = torch.where(is_centre, 0, 1 / torch.where(is_centre, 1, cell.u - k))
        weight = c[k + half].to(cell.u.dtype) * (-1) ** k
        first = first + weight * v
        if with_squares:
            second = second + weight * v * v
        centre = torch.where(is_centre, c[k + half].to(cell.u.dtype), centre)
    return centre, first, second
