"""The sum of the sincs near its middle, expanded in polynomials whose cost does not depend on K.

With a reach R, for |u| <= R, x = u / R and y = 2 x^2 - 1:

    sinc(u - k)  = sum_m E_mk y^m + x sum_m O_mk y^m
    sinc'(u - k) = sum_m E'_mk y^m + x sum_m O'_mk y^m

Times c_k and summed over k, with u = z / tau or, at a carrier's sign sigma, u = z / tau + sigma offset, these are the
sum that phi is made of, and phi'; the first line, times the gradient and summed over the entries, is what dc_k is made
of. Without a carrier phi has no middle sinc, and the first line is that of sinc(u - k) / u: a small u then loses no
digits.

All of them are entire functions of exponential type pi. Fitted in Chebyshev's polynomials of y, their coefficients fall
faster than any power, and what is left out is below 2e-8, of a slope 4e-8. Even and odd powers of u are apart because a
polynomial in y has no large terms that cancel, as one in u has beyond |u| = 1.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

_TERMS_OF_REACH = {0.9: 6, 2.0: 9, 3.9: 13}
"""Terms of E and of O; each reach is as far as they serve."""

_NODES = 64
"""Points in y at which a series is fitted: far more than it has terms."""


class Expansion(NamedTuple):
    """One series per reach, in rising order.

    Args:
        reaches: R [tiers], in units of tau, rising.
        terms: of every tier [tiers].
        table: E, O, E', O' [terms of all tiers, 4, K].
    """

    reaches: Tensor
    terms: Tensor
    table: Tensor


@functools.lru_cache
def expansion(num_basis: int, is_carried: bool) -> Expansion:
    """The series of K = num_basis sincs, with a carrier or without one."""
    k = numpy.arange(num_basis) - num_basis // 2
    table = numpy.concatenate([_table(k, is_carried, *tier) for tier in _TERMS_OF_REACH.items()])
    reaches = torch.tensor(list(_TERMS_OF_REACH), dtype=torch.float64)
    terms = torch.tensor(list(_TERMS_OF_REACH.values()), dtype=torch.int64)
    return Expansion(reaches, terms, torch.from_numpy(table))


def _table(k: numpy.ndarray, is_carried: bool, reach: float, terms: int) -> numpy.ndarray:
    """E, O, E', O' [terms, 4, K]."""
    angle = (numpy.arange(_NODES) + 0.5) * math.pi / _NODES
    u = reach * numpy.cos(angle / 2)[:, None]
    order = numpy.arange(terms)
    fit = numpy.cos(numpy.outer(order, angle)) * numpy.where(order == 0, 1, 2)[:, None] / _NODES
    to_powers = numpy.zeros((terms, terms))
    for m, row in enumerate(numpy.eye(terms)):
        to_powers[: m + 1, m] = numpy.polynomial.chebyshev.cheb2poly(row)[: m + 1]
    parts = []
    for value in (_sinc if is_carried else _sinc_divided, _slope):
        right, left = value(u, k), value(-u, k)
        parts += [(right + left) / 2, (right - left) / (2 * u / reach)]
    table = numpy.stack([to_powers @ fit @ part for part in parts], axis=1)
    if not is_carried:
        table[:, :, len(k) // 2] = 0
    return numpy.ascontiguousarray(table)


def _sinc(u: numpy.ndarray, k: numpy.ndarray) -> numpy.ndarray:
    return numpy.sinc(u - k)


def _sinc_divided(u: numpy.ndarray, k: numpy.ndarray) -> numpy.ndarray:
    return numpy.sinc(u - k) / u


def _slope(u: numpy.ndarray, k: numpy.ndarray) -> numpy.ndarray:
    v = u - k
    # no node is a whole number
    return (numpy.cos(math.pi * v) - numpy.sinc(v)) / v
