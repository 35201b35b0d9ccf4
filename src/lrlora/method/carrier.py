"""The carrier: fixed pseudo-random signs that let phi give an update a high rank at first order. Ours, not the paper's.

Without a carrier phi(B A) is phi'(0) B A to first order: plain LoRA. With signs sigma_ij, phi is used around two points
instead of one,

    phi(z_ij) = tau (f(z_ij / tau + delta_ij) - f(delta_ij)),   delta_ij = offset sigma_ij

phi(0) = 0 still holds, and to first order

    phi(z_ij) = (m + g sigma_ij) z_ij,   m = (f'(offset) + f'(-offset)) / 2,   g = (f'(offset) - f'(-offset)) / 2

dW = s (m + g sigma) o (B A) has rank r where g = 0, and generically full rank where g is not 0, because
sigma o (b a^T) = diag(b) sigma diag(a). m and g are linear in c: the optimizer moves the rank by moving g. The fraction
of the update that r does not bound is, in expectation and to first order, gamma = g^2 / (m^2 + g^2).

The signs are a hash of (seed, row, column). They are never stored, and are the same bit for bit on every device, in
every tile and in every shard.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from lrlora.method.nonlinearity import Form, grid, initial_coefficients, sinc_slope

if TYPE_CHECKING:
    from jaxtyping import Float

Start = Literal["closed", "half", "open"]
STARTS: tuple[Start, ...] = ("closed", "half", "open")


class Carrier(NamedTuple):
    """Which signs, and how far from 0 they move the argument of phi.

    Args:
        offset: in units of the grid, that is of tau; above 0. Without effect on form "linear".
        seed: of the signs, from 0 below 2^32, a whole number or a tensor [] of int64; every layer has one of its own.
    """

    offset: float
    seed: int | Tensor

    def of_expert(self, number: int) -> Carrier:
        """The carrier of one expert of a stack: signs of its own."""
        return self._replace(seed=_mix(_key(self.seed, None) + number + 1).long() & 0xFFFFFFFF)


def signs(carrier: Carrier, rows: int | Tensor, columns: int, device: torch.device | str | None = None) -> Tensor:
    """sigma [rows, columns]: 1 or -1 by a hash of (seed, row, column), float32.

    Example:
        >>> signs(Carrier(0.5, seed=0), 2, 4).tolist()
        [[-1.0, 1.0, -1.0, 1.0], [-1.0, -1.0, 1.0, 1.0]]
    """
    return 1.0 - 2.0 * is_minus(*hashes(carrier.seed, rows, columns, device)).float()


def hashes(
    seed: int | Tensor, rows: int | Tensor, columns: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """An odd hash of every row [rows] and of every column [columns], int32: what `is_minus` makes a sign of.

    `rows` are the first so many, or those whose numbers the tensor holds.
    """
    if isinstance(rows, int):
        rows = torch.arange(rows, dtype=torch.int32, device=device)
    # columns have numbers that no row has
    numbers = torch.cat([rows.int(), torch.arange(-columns, 0, dtype=torch.int32, device=device).flip(0)])
    of_rows, of_columns = (_mix(numbers + _key(seed, device)) | 1).split([len(rows), columns])
    return of_rows, of_columns


def is_minus(of_rows: Tensor, of_columns: Tensor) -> Tensor:
    """Where sigma is -1, from the hashes of some rows and of the columns: [rows, columns], bool.

    The highest bit of the product of two random odd numbers, in int32, whose products wrap around: the same on every
    device, and one product and one comparison per entry.
    """
    return of_rows[:, None] * of_columns[None, :] < 0


def _mix(x: Tensor) -> Tensor:
    """A hash of whole numbers in int32, whose sums and products wrap around; the masks make the shifts logical ones."""
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * 0x2C1B3C6D
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    return x ^ ((x >> 16) & 0xFFFF)


def _key(seed: int | Tensor, device: torch.device | str | None) -> Tensor:
    """The seed as int32, and away from 0, which its hash would leave at 0."""
    seed = torch.as_tensor(seed, dtype=torch.int64, device=device) ^ 0x243F6A88
    return _mix((seed - ((seed & 0x80000000) << 1)).int())


def slopes(c: Float[Tensor, " K"], offset: float, form: Form) -> tuple[Tensor, Tensor]:
    """m and g: to first order phi(z_ij) = (m + g sigma_ij) z_ij.

    Args:
        c: coefficients [K]; the middle one counts. For form "linear" they are m and g themselves.
        offset: of the carrier.
        form: "sinc", "residual" or "linear".

    Returns:
        Two scalars, differentiable in c.

    Example:
        >>> m, g = slopes(starting_coefficients(11, "sinc", 0.5, "closed"), 0.5, "sinc")
        >>> round(m.item(), 5), round(g.item(), 5) + 0.0
        (1.0, 0.0)
    """
    if form == "linear":
        return c[0], c[1]
    k = grid(len(c)).to(c)
    plus, minus = (c * sinc_slope(offset - k)).sum(), (c * sinc_slope(-offset - k)).sum()
    return (plus + minus) / 2 + (1.0 if form == "residual" else 0.0), (plus - minus) / 2


def gate(c: Float[Tensor, " K"], offset: float, form: Form) -> Tensor:
    """gamma = g^2 / (m^2 + g^2) in [0, 1]: the fraction of the update that r does not bound; 0 is LoRA.

    Arguments as for `slopes`. Where m and g are both 0, gamma is 0.
    """
    m, g = slopes(c, offset, form)
    total = m * m + g * g
    return torch.where(total > 0, g * g / torch.where(total > 0, total, 1.0), 0.0)


def starting_coefficients(num_basis: int, form: Form, offset: float, start: Start) -> Float[Tensor, " K"]:
    """The coefficients at which training with a carrier starts.

    "closed": g = 0 and m = 1, LoRA to first order: the odd coefficients of `initial_coefficients`, scaled. "open":
    m = 0 and g = 1: even ones, k^2 with Fejer's weights, scaled. "half": m = g = 1 / sqrt(2): gamma = 1/2, and the
    update has, in expectation, the energy that it has at the other two.

    Args:
        num_basis: K, odd, at least 3; without effect on form "linear".
        form: "sinc", "residual" or "linear".
        offset: of the carrier, above 0.
        start: which of the three.

    Returns:
        c [K], float32; (m, g) for form "linear".

    Raises:
        ValueError: form "sine", or an offset at which the slope of these functions is 0.
    """
    shares = {"closed": (1.0, 0.0), "half": (math.sqrt(0.5), math.sqrt(0.5)), "open": (0.0, 1.0)}[start]
    if form == "linear":
        return torch.tensor(shares)
    k = grid(num_basis).double()
    weights = 1 - k.abs() / (num_basis // 2 + 1)
    odd = _scaled(initial_coefficients(num_basis, "sinc").double(), offset, 0)
    even = _scaled(k * k * weights, offset, 1)
    c = shares[0] * odd + shares[1] * even
    if form == "residual":
        return (c - odd).float()
    if form != "sinc":
        raise ValueError(f"coefficients exist for the forms 'sinc' and 'residual', got {form!r}")
    return c.float()


def _scaled(c: Tensor, offset: float, which: int) -> Tensor:
    slope = slopes(c, offset, "sinc")[which]
    if slope.device.type != "meta" and slope.abs() < 1e-3:
        raise ValueError(f"at the offset {offset} these coefficients have no slope; pass another one, 0.5 say")
    return c / slope
