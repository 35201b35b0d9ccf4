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

The functions are plain torch: `lrlora.ops` runs them unchanged. What does not depend on z is
computed beforehand, into a `Phi`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lrlora.method.carrier import is_minus
from lrlora.method.nonlinearity import Form, check_form, split_tau
from lrlora.method.series import TINY, cell, cosine_polynomial, sinc_polynomial, sinc_slope_polynomial

if TYPE_CHECKING:
    from jaxtyping import Float


class Carried(NamedTuple):
    """The carrier of a matrix as tensors (`carrier.py`).

    Args:
        at: the two points at which phi is used, +offset and -offset [2].
        value: sum_k c_k sinc(at - k) [2], subtracted from phi(z): phi(0) = 0. For form "linear" the two slopes.
        sincs: sinc(at - k) [2, K].
        rows: hash of every row of the matrix, or of the tile that is being computed.
        columns: hash of every column.
    """

    at: Tensor
    value: Tensor
    sincs: Tensor
    rows: Tensor
    columns: Tensor


class Phi(NamedTuple):
    """scale phi as numbers: value linear z + height sum_k c_k (...), slope linear + bend sum_k c_k (...)."""

    form: Form
    c: Tensor | None
    tau: Tensor
    height: Tensor
    linear: Tensor
    bend: Tensor
    carried: Carried | None = None

    def of_rows(self, rows: slice) -> Phi:
        """The same for a tile of rows of the matrix."""
        if self.carried is None:
            return self
        return self._replace(carried=self.carried._replace(rows=self.carried.rows[rows]))


def scaled(c: Tensor | None, tau: Tensor | float, scale: Tensor | float, form: Form, like: Tensor) -> Phi:
    """The numbers of scale phi, in the dtype and on the device of `like`; at tau = inf, phi is the identity."""
    tau = torch.as_tensor(tau, dtype=like.dtype, device=like.device)
    scale = torch.as_tensor(scale, dtype=like.dtype, device=like.device)
    if form == "sine":
        return Phi(form, c, tau, scale, torch.zeros_like(tau), scale / tau)
    if form == "linear":
        return Phi(form, c, tau, scale, torch.zeros_like(tau), scale)
    height, linear = split_tau(tau, form)
    return Phi(form, c, tau, scale * height, scale * linear, scale * torch.isfinite(tau))


def carried(offset: float, rows: Tensor, columns: Tensor, c: Tensor, form: Form) -> Carried:
    """A carrier with this offset and these hashes of rows and columns, in the dtype of c and on its device."""
    if form == "linear":
        slopes, unused = torch.stack([c[0] + c[1], c[0] - c[1]]), c[:0]
        return Carried(unused, slopes, unused, rows, columns)
    at = (offset, -offset)
    half = len(c) // 2
    sincs = torch.tensor([[_sinc(u - k) for k in range(-half, half + 1)] for u in at], dtype=c.dtype, device=c.device)
    return Carried(torch.tensor(at, dtype=c.dtype, device=c.device), sincs @ c, sincs, rows, columns)


def _sinc(u: float) -> float:
    return math.sin(math.pi * u) / (math.pi * u) if u else 1.0


def phi(
    z: Float[Tensor, "*shape"], c: Float[Tensor, " K"] | None, tau: Tensor | float, form: Form
) -> Float[Tensor, "*shape"]:
    """`nonlinearity.phi`, evaluated fast; same arguments, errors and source. Keeps no graph: call it under no_grad.

    Example:
        >>> phi(torch.tensor([0.0, 0.5]), torch.tensor([-0.5, 0.0, 0.5]), 1.0, "sinc")
        tensor([0.0000, 0.4244])
    """
    check_form(form, c)
    return scaled_phi(z, scaled(c, tau, 1.0, form, z))


def scaled_phi(z: Tensor, at: Phi) -> Tensor:
    """scale phi(z), for numbers in the dtype of z."""
    c, minus = at.c, None if at.carried is None else is_minus(at.carried.rows, at.carried.columns)
    if at.form == "sine":
        return at.height * torch.sin(z / at.tau)
    assert c is not None
    if at.form == "linear":
        return at.height * _linear_slope(c, at, minus) * z
    u = z / at.tau
    if at.carried is not None and minus is not None:
        u = u + _by_sign(minus, at.carried.at)
        risen = _sum_of_sincs(u, c) - _by_sign(minus, at.carried.value)
        return at.linear * z + at.height * torch.where(z == 0, 0, risen)
    j, g, sign = cell(u)
    g = torch.where((g == 0) & (j != 0), TINY, g)
    total = _pairs(j, g, c)
    return at.linear * z + at.height * sinc_polynomial(g) * (sign * g * total)


def _linear_slope(c: Tensor, at: Phi, minus: Tensor | None) -> Tensor:
    return c[0] if at.carried is None or minus is None else _by_sign(minus, at.carried.value)


def _pairs(j: Tensor, g: Tensor, c: Tensor, first: int = 1) -> Tensor:
    """sum_{|k| >= first} (-1)^k c_k / (j + g - k)."""
    total = torch.zeros_like(g)
    half = len(c) // 2
    for k in range(first, half + 1):
        from_plus, from_minus = (j - k) + g, (j + k) + g
        both = (c[half + k] * from_minus + c[half - k] * from_plus) / (from_plus * from_minus)
        total = total - both if k % 2 else total + both
    return total


def _sum_of_sincs(u: Tensor, c: Tensor) -> Tensor:
    """sum_k c_k sinc(u - k), the middle one with the others."""
    j, g, sign = cell(u)
    g = torch.where(g == 0, TINY, g)
    half = len(c) // 2
    # the middle one and the first pair with one division
    here, from_plus, from_minus = j + g, (j - 1) + g, (j + 1) + g
    product = from_plus * from_minus
    inner = c[half] * product - here * (c[half + 1] * from_minus + c[half - 1] * from_plus)
    return sinc_polynomial(g) * (sign * g * (inner / (here * product) + _pairs(j, g, c, first=2)))


def _inverses(j: Tensor, g: Tensor, k: int) -> tuple[Tensor | None, Tensor, Tensor]:
    """1 / (j + g), for k = 1 only, 1 / (j + g - k) and 1 / (j + g + k), with one division."""
    from_plus, from_minus = (j - k) + g, (j + k) + g
    product = from_plus * from_minus
    if k > 1:
        r = 1 / product
        return None, from_minus * r, from_plus * r
    here = j + g
    r = 1 / (here * product)
    return product * r, here * from_minus * r, here * from_plus * r


def _by_sign(minus: Tensor, pair: Tensor) -> Tensor:
    """The second of two numbers where sigma is -1, else the first."""
    return torch.where(minus, pair[1], pair[0])


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
        phi(z); dL/dz; dL/dc summed over the last axis of z only, [*rows, K] (a pass over rows sums them as it goes), or
        None for form "sine".

    Raises:
        ValueError: as `nonlinearity.phi`.

    Example:
        >>> z, c = torch.tensor([[0.0, 0.5]]), torch.tensor([-0.5, 0.0, 0.5])
        >>> [t.shape for t in phi_and_gradients(z, torch.ones(1, 2), c, 1.0, "sinc")]
        [torch.Size([1, 2]), torch.Size([1, 2]), torch.Size([1, 3])]
    """
    check_form(form, c)
    return scaled_phi_and_gradients(z, upstream, scaled(c, tau, 1.0, form, z))


def scaled_phi_and_gradients(z: Tensor, upstream: Tensor, at: Phi) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `phi_and_gradients`, of scale phi."""
    c = at.c
    if at.form == "sine":
        u = z / at.tau
        return at.height * torch.sin(u), upstream * at.bend * torch.cos(u), None
    assert c is not None
    if at.form == "linear":
        return _linear_and_gradients(z, upstream, c, at)
    if at.carried is not None:
        return _carried_phi_and_gradients(z, upstream, c, at, at.carried)
    j, g, sign = cell(z / at.tau)
    p = sinc_polynomial(g)
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
    slope = sign * (cosine_polynomial(g) * total - g * p * total_of_squares) + at_centre * sinc_slope_polynomial(g)
    return value, upstream * (at.linear + at.bend * slope), torch.stack(dc, dim=-1)


def _linear_and_gradients(z: Tensor, upstream: Tensor, c: Tensor, at: Phi) -> tuple[Tensor, Tensor, Tensor]:
    """As `scaled_phi_and_gradients`, of form "linear"."""
    minus = None if at.carried is None else is_minus(at.carried.rows, at.carried.columns)
    slope = at.height * _linear_slope(c, at, minus)
    share = at.height * upstream * z
    dc = [share.sum(-1)]
    if minus is not None:
        dc.append(torch.where(minus, -share, share).sum(-1))
    return slope * z, upstream * slope, torch.stack(dc, dim=-1)


def _carried_phi_and_gradients(
    z: Tensor, upstream: Tensor, c: Tensor, at: Phi, by: Carried
) -> tuple[Tensor, Tensor, Tensor]:
    """As `scaled_phi_and_gradients`, with a carrier: the middle sinc counts, and the value at delta is subtracted.

    These values are subtracted from the sums over a row, by sign, instead of from every entry. Entries with z = 0 add
    nothing to dL/dc: there both sides of the difference are the same, and only rounding errors would be left.
    """
    minus = is_minus(by.rows, by.columns)
    j, g, sign = cell(z / at.tau + _by_sign(minus, by.at))
    p = sinc_polynomial(g)
    near_g = torch.where(g == 0, TINY, g)
    lifted = torch.where(z == 0, 0, at.height * upstream)
    away = sign * near_g * (lifted * p)
    of_minus = torch.where(minus, lifted, 0).sum(-1)
    of_plus = lifted.sum(-1) - of_minus
    half = len(c) // 2
    is_here = j == 0
    at_centre = torch.where(is_here, c[half], 0)
    total = total_of_squares = torch.zeros_like(z)
    dc = [total.sum(-1)] * len(c)
    for k in range(1, half + 1):
        plus, minus_c = c[half + k], c[half - k]
        is_plus, is_minus_k = j == k, j == -k
        v, v_plus, v_minus = _inverses(j, near_g, k)
        if v is not None:
            dc[half] = (away * v).sum(-1)
            v = torch.where(is_here, 0, v)
            total = c[half] * v
            total_of_squares = total * v
        of_k = -1 if k % 2 else 1
        dc[half + k], dc[half - k] = (of_k * away * v_plus).sum(-1), (of_k * away * v_minus).sum(-1)
        at_centre = torch.where(is_plus, plus, torch.where(is_minus_k, minus_c, at_centre))
        # the slope near a centre has a formula of its own: this one would cancel there
        v_plus, v_minus = torch.where(is_plus, 0, v_plus), torch.where(is_minus_k, 0, v_minus)
        weighted_plus, weighted_minus = plus * v_plus, minus_c * v_minus
        total = total + of_k * (weighted_plus + weighted_minus)
        total_of_squares = total_of_squares + of_k * (weighted_plus * v_plus + weighted_minus * v_minus)
    risen = p * (at_centre + sign * g * total) - _by_sign(minus, by.value)
    value = at.linear * z + at.height * torch.where(z == 0, 0, risen)
    slope = sign * (cosine_polynomial(g) * total - g * p * total_of_squares) + at_centre * sinc_slope_polynomial(g)
    base = of_plus[..., None] * by.sincs[0] + of_minus[..., None] * by.sincs[1]
    return value, upstream * (at.linear + at.bend * slope), torch.stack(dc, dim=-1) - base
