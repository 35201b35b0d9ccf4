"""The series of the sum of the sincs, in doubles: what it leaves out, for every K, on the whole of every reach."""

import re

import numpy
import pytest
import torch

from lrlora.method.nonlinearity import sinc
from lrlora.ops import library
from lrlora.ops.expansion import expansion


def sums(table, reach, u):
    """What the first part, and the second, of every sinc is at u [n, K]."""
    x = u / reach
    y = (2 * x**2 - 1) ** numpy.arange(len(table))[:, None, None]
    even, odd, slope_even, slope_odd = (numpy.einsum("mnk,mk->nk", y, table[:, part]) for part in range(4))
    return even + x * odd, slope_even + x * slope_odd


@pytest.mark.parametrize("is_carried", [True, False])
@pytest.mark.parametrize("num_basis", [3, 11, 33, 101])
def test_what_is_left_out_is_below_a_rounding_of_a_float(num_basis, is_carried):
    reaches, terms, table = expansion(num_basis, is_carried)
    k = numpy.arange(num_basis) - num_basis // 2
    first = 0
    for reach, count in zip(reaches.tolist(), terms.tolist(), strict=True):
        u = numpy.linspace(-reach, reach, 1001)[:, None]
        value, slope = sums(table[first : first + count].numpy(), reach, u)
        first += count
        exact = torch.from_numpy(u - k).requires_grad_()
        truth = sinc(exact)
        (slope_truth,) = torch.autograd.grad(truth.sum(), exact)
        kept = numpy.ones(num_basis, bool)
        if not is_carried:
            value, kept = value * u, k != 0
            assert not value[:, ~kept].any() and not slope[:, ~kept].any()
        assert abs(value - truth.detach().numpy())[:, kept].max() < 2e-8
        assert abs(slope - slope_truth.numpy())[:, kept].max() < 4e-8
    assert first == len(table)


def test_no_power_has_so_large_a_coefficient_that_its_rounding_counts():
    reaches, terms, table = expansion(11, False)
    first = 0
    for reach, count in zip(reaches.tolist(), terms.tolist(), strict=True):
        # u times the first part
        assert reach * table[first : first + count, :2].abs().max() < 20
        first += count


def test_the_library_has_room_for_all_of_it():
    text = library.SOURCE.read_text(encoding="utf-8")
    (tiers, terms) = re.search(r"MOST_TIERS = (\d+), MOST_TERMS = (\d+);", text).groups()
    reaches, counts, _ = expansion(11, True)
    assert len(reaches) <= int(tiers)
    assert counts.sum() <= int(terms)
