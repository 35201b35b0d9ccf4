import pytest
import torch

from lrlora.method.nonlinearity import FORMS, initial_coefficients
from lrlora.method.update import adapted_linear, delta_weight


@pytest.mark.parametrize("phi", FORMS)
def test_gradcheck_of_every_factor(phi):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    W0 = torch.randn(5, 4, dtype=torch.float64)
    A = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    B = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    many = 1 if phi == "linear" else 7
    c = None if phi == "sine" else torch.randn(many, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)

    def call(*tensors):
        x, A, B, bias, *rest = tensors
        return adapted_linear(x, W0, bias, A, B, rest[0] if rest else None, 0.8, 1.7, phi=phi)

    assert torch.autograd.gradcheck(call, (x, A, B, bias) if c is None else (x, A, B, bias, c))


def test_gradcheck_where_entries_of_the_product_lie_exactly_on_grid_points():
    A = torch.tensor([[1.0, 2.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    B = torch.tensor([[1.0], [0.5], [-2.0]], dtype=torch.float64, requires_grad=True)
    c = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda A, B, c: delta_weight(A, B, c, 1.0, 2.0, phi="sinc"), (A, B, c))


def test_the_update_is_zero_where_b_is_zero_and_float32_whatever_the_factors_are():
    c = initial_coefficients(11, "sinc")
    dW = delta_weight(torch.randn(4, 6).bfloat16(), torch.zeros(5, 4).bfloat16(), c, 0.1, 2.0, phi="sinc")
    assert dW.dtype == torch.float32
    assert dW.abs().max() == 0


def test_at_infinite_tau_it_is_lora():
    A, B = torch.randn(2, 6), torch.randn(5, 2)
    dW = delta_weight(A, B, torch.randn(5), torch.inf, 2.0, phi="sinc")
    torch.testing.assert_close(dW, 2 * B @ A, rtol=0, atol=0)


def test_factors_that_do_not_fit_are_refused():
    # without the shape checks of the test suite, as users call it
    with pytest.raises(ValueError, match=r"needed A \[r, in\]"):
        delta_weight.__wrapped__(torch.ones(2, 4), torch.ones(5, 3), None, 1.0, 1.0, phi="sine")
