"""The statements of docs/theory.md, in numbers: one test each, in float64, with the proof's own constants."""

import math

import numpy as np
import pytest
import torch

from lrlora.method.carrier import STARTS, Carrier, gate, signs, slopes, starting_coefficients
from lrlora.method.nonlinearity import initial_coefficients, phi
from lrlora.method.rank import numerical_rank, stable_rank
from lrlora.method.update import delta_weight


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rank_of(M: torch.Tensor, tolerance: float = 1e-10) -> int:
    return numerical_rank(torch.linalg.svdvals(M), tolerance)


def count(r: int, powers) -> int:
    return sum(math.comb(r + k - 1, k) for k in powers)


@pytest.mark.parametrize("r", [1, 2, 3, 4])
@pytest.mark.parametrize("powers", [(1,), (2,), (1, 3), (1, 2, 3), (0, 1, 3)])
def test_powers_of_the_entries_have_the_rank_that_monomials_count(r, powers):
    Z = gaussian(60, r) @ gaussian(r, 70, seed=1)
    assert rank_of(torch.stack([Z**k / math.factorial(k) for k in powers]).sum(0)) == count(r, powers)


@pytest.mark.parametrize(("degree", "reach"), [(3, 0.05), (5, 0.2), (7, 0.3)])
def test_singular_values_past_the_count_are_below_the_error_of_interpolation(degree, reach):
    r, c = 2, initial_coefficients(11, "sinc").double()
    # factors of flat entries: the bound is close enough to notice a count that is too small
    Z = gaussian(80, r).erf() @ gaussian(r, 90, seed=1).erf()
    Z = Z * reach / Z.abs().max()

    def of(z):
        return phi(torch.as_tensor(z), c, 1.0, "sinc").numpy()

    polynomial = np.polynomial.Chebyshev.interpolate(of, degree, domain=[-reach, reach])
    line = np.linspace(-reach, reach, 20_001)
    error = np.abs(of(line) - polynomial(line)).max()
    tail = torch.linalg.svdvals(torch.as_tensor(of(Z.numpy())))[count(r, range(1, degree + 1, 2)) :]
    assert error > 1e-12  # above rounding: the bound says something
    assert 1e-4 * error < tail.square().sum().sqrt().item() <= error * math.sqrt(80 * 90)


def moment(r: int, k: int) -> float:
    """E t^k of one coordinate t of a uniform point of the sphere in R^r, for even k."""
    return math.prod((2 * i + 1) / (r + 2 * i) for i in range(k // 2))


@pytest.mark.parametrize(("r", "w"), [(2, 1.0), (4, 1.0), (8, 1.0), (8, 1.4)])
def test_the_stable_rank_of_a_sine_of_gaussian_entries(r, w):
    out = 3000
    # whitened: a sample's own spread of its r leading singular values would hide the factor
    A, B = (torch.linalg.qr(gaussian(3000, r, seed=seed)).Q for seed in (1, 2))
    Z = w * math.sqrt(out) * B @ (A / A.norm(dim=1, keepdim=True)).T
    odd = range(1, 60, 2)
    squares = {k: math.exp(-w * w) * w ** (2 * k) / math.factorial(k) for k in odd}
    factor = sum(squares.values()) / (r * sum(a * moment(r, k + 1) for k, a in squares.items()))
    measured = stable_rank(torch.sin(Z)) / stable_rank(Z)
    assert measured == pytest.approx(factor, rel=0.02)


def test_the_factor_of_many_dimensions_is_a_bound_that_is_neared():
    def factor(r, w):
        terms = {k: w ** (2 * k) / math.factorial(k) for k in range(1, 60, 2)}
        return sum(terms.values()) / (r * sum(a * moment(r, k + 1) for k, a in terms.items()))

    limit = math.sinh(1.0)
    values = [factor(r, 1.0) for r in (1, 2, 8, 64, 4096)]
    assert values[0] == pytest.approx(1.0)
    assert values == sorted(values)
    assert values[-1] < limit
    assert values[-1] == pytest.approx(limit, rel=1e-3)
    assert math.sinh(1.476**2) / 1.476**2 == pytest.approx(2.0, rel=2e-3)


@pytest.mark.parametrize("r", [1, 3])
def test_an_analytic_phi_has_full_rank_and_a_polynomial_has_not(r):
    n, c = 6, initial_coefficients(11, "sinc").double()
    Z = 2 * gaussian(n, r) @ gaussian(r, n, seed=1)
    assert rank_of(phi(Z, c, 1.0, "sinc"), 1e-9) == n
    Z1 = gaussian(n, 1) @ gaussian(1, n, seed=1)
    assert rank_of(Z1 - Z1**3 / 6) == 2


@pytest.mark.parametrize("offset", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("start", STARTS)
def test_an_update_at_b_zero_is_zero_and_at_tiny_b_has_two_slopes(start, offset):
    carrier = Carrier(offset, seed=3)
    c = starting_coefficients(11, "sinc", offset, start).double() + 0.1 * gaussian(11)
    A, B = gaussian(2, 50), gaussian(40, 2, seed=1)
    arguments = {"phi": "sinc", "carrier": carrier}
    assert torch.equal(delta_weight(A, 0 * B, c, 1.0, 2.0, **arguments), torch.zeros(40, 50).double())
    m, g = slopes(c, offset, "sinc")
    far = (B @ A).abs() > 0.1
    quotient = delta_weight(A, 1e-6 * B, c, 1.0, 2.0, **arguments) / (1e-6 * B @ A)
    expected = 2.0 * (m + g * signs(carrier, 40, 50).double())
    torch.testing.assert_close(quotient[far], expected[far], rtol=0, atol=1e-4)
    assert len(quotient[far].mul(100).round().unique()) == (1 if g.abs() < 1e-3 else 2)


def test_signs_lift_rank_one_to_full_rank():
    sigma = signs(Carrier(0.5, seed=1), 60, 60).double()
    b, a = gaussian(60, 1), gaussian(1, 60, seed=1)
    torch.testing.assert_close(sigma * (b @ a), b * sigma * a)
    assert rank_of(sigma) == rank_of(sigma * (b @ a)) == rank_of((0.9 + 0.1 * sigma) * (b @ a)) == 60
    assert rank_of((0.9 + 0 * sigma) * (b @ a)) == 1


def test_gamma_is_the_expected_share_of_energy_over_seeds():
    c = starting_coefficients(11, "sinc", 0.5, "half").double() + 0.3 * gaussian(11)
    m, g = (x.item() for x in slopes(c, 0.5, "sinc"))
    Z = gaussian(20, 2) @ gaussian(2, 30, seed=1)
    energy = Z.square().sum()
    ratios = torch.stack(
        [((m + g * signs(Carrier(0.5, seed), 20, 30).double()) * Z).square().sum() / energy for seed in range(400)]
    )
    spread = 2 * abs(m * g) * (Z**4).sum().sqrt().item() / energy.item()
    assert ratios.mean().item() == pytest.approx(m * m + g * g, abs=4 * spread / 20)
    assert ratios.std().item() == pytest.approx(spread, rel=0.15)
    assert gate(c, 0.5, "sinc").item() == pytest.approx(g * g / ratios.mean().item(), rel=0.05)


@pytest.mark.parametrize(("out", "within"), [(512, 512), (400, 900)])
def test_the_stable_rank_of_an_open_carrier(out, within):
    sigma = signs(Carrier(0.5, seed=2), out, within).double()
    edge = out * within / (math.sqrt(out) + math.sqrt(within)) ** 2
    assert stable_rank(sigma) == pytest.approx(edge, rel=0.05)
    flat = torch.where(gaussian(out, 1) > 0, 1.0, -1.0).double()
    assert stable_rank(flat * sigma) == pytest.approx(stable_rank(sigma))
    Z = gaussian(out, 1) @ gaussian(1, within, seed=1)
    rows, columns = (sigma * Z).norm(dim=1).max(), (sigma * Z).norm(dim=0).max()
    assert (Z.norm() / (rows + columns)).item() ** 2 < stable_rank(sigma * Z) < 0.8 * edge


def test_a_polynomial_of_small_degree_gives_the_signs_of_a_bounded_phi():
    c, carrier, reach = starting_coefficients(11, "sinc", 0.5, "half").double(), Carrier(0.5, seed=4), 2.0
    A, B = gaussian(2, 12), gaussian(10, 2, seed=1)
    Z = B @ A
    Z, B = Z * reach / Z.abs().max(), B * reach / Z.abs().max()
    sigma, X = signs(carrier, 10, 12).double(), gaussian(300, 10, 12, seed=2)
    degree = 16
    polynomials = [
        np.polynomial.Chebyshev.interpolate(
            lambda z, s=s: phi(torch.as_tensor(z), c, 1.0, "sinc", torch.full(z.shape, 0.5 * s).double()).numpy(),
            degree,
            domain=[-reach, reach],
        )
        for s in (-1.0, 1.0)
    ]
    line = torch.linspace(-reach, reach, 4001).double()
    errors = [
        np.abs(p(line.numpy()) - phi(line, c, 1.0, "sinc", torch.full_like(line, 0.5 * s)).numpy()).max()
        for p, s in zip(polynomials, (-1.0, 1.0), strict=True)
    ]
    assert max(errors) < 1e-4
    minus, plus = (torch.as_tensor(p(Z.numpy())) for p in polynomials)
    near = torch.where(sigma > 0, plus, minus)
    bits = (X * delta_weight(A, B, c, 1.0, 1.0, phi="sinc", carrier=carrier)).sum((1, 2))
    wide = bits.abs() > max(errors) * X.abs().sum((1, 2))
    assert wide.sum() > 250
    assert torch.equal(bits[wide] > 0, (X * near).sum((1, 2))[wide] > 0)
