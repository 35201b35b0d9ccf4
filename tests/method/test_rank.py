import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrlora.method import rank
from lrlora.method.nonlinearity import initial_coefficients
from lrlora.method.update import delta_weight


@pytest.mark.parametrize("shape", [(1, 1), (63, 100), (100, 63), (600, 700), (1000, 520)])
def test_stable_rank_equals_the_full_decomposition(shape):
    M = torch.randn(shape) @ torch.diag(torch.linspace(0.1, 1, shape[1]) ** 2)
    sigma = torch.linalg.svdvals(M.double())
    truth = (sigma.square().sum() / sigma[0] ** 2).item()
    assert rank.stable_rank(M) == pytest.approx(truth, rel=1e-6)
    torch.testing.assert_close(rank.singular_values(M), sigma, rtol=1e-6, atol=1e-7 * sigma[0].item())


def test_lanczos_meets_a_spectrum_with_close_largest_values():
    left = torch.linalg.qr(torch.randn(700, 600, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(600, 600, dtype=torch.float64)).Q
    sigma = torch.cat([torch.tensor([1.0, 0.999, 0.998]), torch.linspace(0.9, 0, 597)]).double()
    assert rank.spectral_norm(left @ torch.diag(sigma) @ right.T) == pytest.approx(1, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(0, 10_000))
def test_ranks_lie_in_their_bounds(out, within, r, seed):
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(r, within, generator=generator), torch.randn(out, r, generator=generator)
    bound = min(out, within, r)
    sigma = rank.product_singular_values(A, B)
    assert 1 <= rank.stable_rank(B @ A) <= bound + 1e-4
    assert 1 <= rank.effective_rank(sigma) <= bound + 1e-4
    assert 1 <= rank.numerical_rank(sigma) <= bound
    torch.testing.assert_close(sigma[:bound], torch.linalg.svdvals(B.double() @ A.double())[:bound])
    torch.testing.assert_close(rank.product_rms(A, B), (B @ A).square().mean().sqrt(), rtol=1e-4, atol=1e-6)


def test_a_huge_knee_learns_no_rank_and_a_small_one_does():
    A, B = torch.randn(4, 200), torch.randn(150, 4)
    c = initial_coefficients(11, "sinc")
    plain = rank.stable_rank(B @ A)
    huge, small = (rank.stable_rank(delta_weight(A, B, c, tau, 1.0, phi="sinc")) for tau in (1e4, 0.3))
    assert huge == pytest.approx(plain, rel=1e-3)
    assert small > 1.2 * plain


def test_a_constant_matrix_is_found():
    M = torch.ones(6, 5)
    assert rank.constant_share(M) == pytest.approx(1)
    assert rank.stable_rank(M) == pytest.approx(1)
    assert rank.constant_share(M - 1) == 0


def test_zero_has_rank_zero():
    assert rank.stable_rank(torch.zeros(3, 4)) == 0
    assert rank.effective_rank(torch.zeros(3)) == 0
    assert rank.numerical_rank(torch.zeros(3)) == 0


def test_what_has_no_rank_is_refused():
    with pytest.raises(ValueError, match="NaN or inf"):
        rank.stable_rank(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(ValueError, match="needs a matrix"):
        rank.stable_rank.__wrapped__(torch.ones(3))
