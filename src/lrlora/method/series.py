"""sinc(g) and its relatives next to a grid point, |g| <= 1/2, as Taylor polynomials of g^2, for `fast.py`.

Seven terms are exact to 4e-10 (float32), eleven to 1e-17 (float64).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lrlora.method.nonlinearity import alternating

TINY = 1e-18
"""Replaces g = 0 on a centre: its square is still a float32, and so is v = 1 / TINY."""


def cell(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest whole number j, the distance g = u - j, and (-1)^j."""
    j = torch.round(u)
    return j, u - j, alternating(j)


def sinc_polynomial(g: Tensor) -> Tensor:
    """P(g^2) = sinc(g)."""
    return _polynomial(SINC_SERIES[g.dtype], g * g)


def cosine_polynomial(g: Tensor) -> Tensor:
    """C(g^2) = cos(pi g), the derivative of g P(g^2)."""
    return _polynomial(_COSINE[g.dtype], g * g)


def sinc_slope_polynomial(g: Tensor) -> Tensor:
    """d P(g^2) / dg = 2 g P'(g^2)."""
    return 2 * g * _polynomial(_SINC_SLOPE[g.dtype], g * g)


# computed here and not where they are used: a trace of the functions would compute them for every entry
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
