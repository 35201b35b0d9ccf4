import pytest
import torch

from lrlora.method import fast, nonlinearity
from lrlora.method.nonlinearity import FORMS, initial_coefficients
from tests.conftest import rel_rms


def points(half: int, tau: float) -> torch.Tensor:
    """On grid points, between and next to them, and far outside."""
    centres = torch.arange(-half - 3, half + 4, dtype=torch.float64)
    near = torch.cat([centres, centres + 0.5, centres - 0.5, centres + 1e-6, centres + 0.123])
    far = torch.tensor([1e2, -1e3, 12345.678, -1e6, 1e9], dtype=torch.float64)
    return tau * torch.cat([near, far, torch.randn(500, dtype=torch.float64) * half])


@pytest.mark.parametrize("form", ["sinc", "residual"])
@pytest.mark.parametrize("half", [1, 2, 5, 16])
@pytest.mark.parametrize("is_trained", [False, True])
def test_one_polynomial_equals_the_sum_of_torch_sinc(form, half, is_trained):
    tau = 0.37
    c = initial_coefficients(2 * half + 1, form) + is_trained * torch.randn(2 * half + 1)
    z = points(half, tau).float()
    u, k = z.double().unsqueeze(-1) / tau, torch.arange(-half, half + 1, dtype=torch.float64)
    lifted = torch.sinc(u - k) - torch.sinc(-k)
    lifted[..., half] = 0
    truth = tau * (lifted * c.double()).sum(-1)
    linear = z.double() if form == "residual" else torch.zeros_like(truth)
    ours = fast.phi(z, c, tau, form).double()
    # far outside the grid the linear part of "residual" would hide an error in the sincs: it is compared without it
    scale = truth.abs().max().clamp(min=tau)
    tolerance = 2e-6 * torch.maximum(scale, linear.abs())
    assert ((ours - linear - truth).abs() <= tolerance).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_slope_and_gradient_of_c_equal_the_definition(form, dtype):
    half, tau = 5, 0.21
    z = points(half, tau)
    many = 1 if form == "linear" else 2 * half + 1
    c = None if form == "sine" else torch.randn(many, dtype=torch.float64, requires_grad=True)
    truth = nonlinearity.phi(z, c, tau, form)
    upstream = torch.randn_like(z)
    value, dz, dc = fast.phi_and_gradients(
        z.to(dtype), upstream.to(dtype), None if c is None else c.detach().to(dtype), tau, form
    )
    slope = nonlinearity.phi_slope(z, None if c is None else c.detach(), tau, form)
    if form == "sine":
        # the phase of entries of a million radians is lost in float32 before any function sees it
        upstream, truth, value, slope, dz = (t[:35] for t in (upstream, truth, value, slope, dz))
    bound = 1e-12 if dtype == torch.float64 else 2e-6
    assert rel_rms(value, truth.detach()) < bound
    assert rel_rms(dz, upstream * slope) < 5 * bound
    if c is None:
        assert dc is None
    else:
        (of_autograd,) = torch.autograd.grad((truth * upstream).sum(), c)
        assert rel_rms(dc, of_autograd) < bound
        assert form == "linear" or dc[half] == 0


def test_infinite_tau_gives_the_identity_and_no_gradient():
    z, c = torch.randn(40), torch.randn(7)
    value, dz, dc = fast.phi_and_gradients(z, torch.ones(40), c, torch.inf, "sinc")
    torch.testing.assert_close(value, z, rtol=0, atol=0)
    torch.testing.assert_close(dz, torch.ones(40), rtol=0, atol=0)
    torch.testing.assert_close(dc, torch.zeros(7), rtol=0, atol=0)


def test_nan_and_infinity_do_not_become_numbers():
    z, c = torch.tensor([float("nan"), float("inf"), 1.0]), torch.randn(5)
    assert fast.phi(z, c, 1.0, "sinc").isnan().tolist() == [True, True, False]
