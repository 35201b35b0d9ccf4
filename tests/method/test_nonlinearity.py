import math

import pytest
import torch

from lrlora.method.nonlinearity import (
    FORMS,
    grid,
    initial_coefficients,
    phi,
    phi_slope,
    sinc,
    sinc_slope,
)


def on_and_off_grid(half: int) -> torch.Tensor:
    """Points on every centre, between them, close to them, and outside."""
    centres = torch.arange(-half - 2, half + 3, dtype=torch.float64)
    return torch.cat([centres, centres + 0.5, centres + 1e-4, centres - 1e-9, centres + 0.3])


@pytest.mark.parametrize("half", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("form", ["sinc", "residual"])
def test_phi_starts_at_zero_with_slope_one(half, form):
    c = initial_coefficients(2 * half + 1, form)
    zero = torch.zeros(1)
    assert phi(zero, c, 0.3, form).item() == 0
    assert phi_slope(zero, c, 0.3, form).item() == pytest.approx(1, abs=1e-6)


def test_plain_c_equal_k_has_no_slope_for_even_m():
    # why the first coefficients carry Fejer weights: without them B would never train
    assert phi_slope(torch.zeros(1), grid(5), 1.0, "sinc").item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("form", ["sinc", "residual"])
def test_phi_of_zero_stays_zero_whatever_c_becomes(form):
    c = initial_coefficients(11, form)
    for _ in range(100):
        c = c + torch.randn(11)
        assert phi(torch.zeros(3), c, 0.7, form).abs().max().item() == 0


def test_the_middle_coefficient_has_no_effect():
    c = initial_coefficients(7, "sinc")
    other = c.clone()
    other[3] = 5.0
    z = torch.randn(50)
    torch.testing.assert_close(phi(z, other, 0.4, "sinc"), phi(z, c, 0.4, "sinc"), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["sinc", "residual"])
def test_phi_is_the_identity_at_infinite_tau(form):
    z = torch.randn(20)
    c = torch.randn(5)
    torch.testing.assert_close(phi(z, c, math.inf, form), z, rtol=0, atol=0)
    torch.testing.assert_close(phi_slope(z, c, math.inf, form), torch.ones(20), rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_slope_is_the_derivative(form):
    c = None if form == "sine" else torch.randn(1 if form == "linear" else 9, dtype=torch.float64)
    z = (0.6 * on_and_off_grid(4)).requires_grad_()
    (slope,) = torch.autograd.grad(phi(z, c, 0.6, form).sum(), z)
    torch.testing.assert_close(phi_slope(z.detach(), c, 0.6, form), slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_with_entries_on_grid_points(form):
    z = (0.6 * on_and_off_grid(2)).requires_grad_()
    if form == "sine":
        assert torch.autograd.gradcheck(lambda z: phi(z, None, 0.6, form), z)
    else:
        c = torch.randn(1 if form == "linear" else 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda z, c: phi(z, c, 0.6, form), (z, c))


def test_sinc_slope_is_right_near_zero_where_torch_is_not():
    u = torch.tensor([1e-4, 1e-3, 0.09, 0.11, 1.0, 3.5], requires_grad=True)
    exact = u.detach().double()
    truth = (torch.cos(math.pi * exact) - torch.sinc(exact)) / exact
    (ours,) = torch.autograd.grad(sinc(u).sum(), u)
    torch.testing.assert_close(ours.double(), truth, rtol=2e-6, atol=5e-7)
    torch.testing.assert_close(sinc_slope(torch.zeros(1)), torch.zeros(1))


@pytest.mark.parametrize("num_basis", [0, 1, 2, 10, -3])
def test_an_even_or_small_basis_is_refused(num_basis):
    with pytest.raises(ValueError, match="odd and at least 3"):
        grid(num_basis)


def test_a_wrong_form_or_missing_coefficients_are_refused():
    z = torch.zeros(1)
    with pytest.raises(ValueError, match="takes coefficients"):
        phi(z, None, 1.0, "sinc")
    with pytest.raises(ValueError, match="takes no coefficients"):
        phi(z, torch.zeros(3), 1.0, "sine")
    with pytest.raises(ValueError, match="exist for the forms"):
        initial_coefficients(3, "sine")
