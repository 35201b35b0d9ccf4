"""The carrier: signs of a hash, phi(0) = 0 with it, and rank at first order where its gate opens."""

import pytest
import torch

from lrlora.method.carrier import STARTS, Carrier, gate, hashes, is_minus, signs, slopes, starting_coefficients
from lrlora.method.update import delta_weight

CARRIER = Carrier(0.5, seed=11)


def hash_in_whole_numbers(seed: int, row: int, column: int) -> int:
    """The same signs with Python's own numbers, one at a time."""

    def wrapped(x: int) -> int:
        return (x + 2**31) % 2**32 - 2**31

    def mix(x: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x2C1B3C6D), (16, 0x7FEB352D)):
            x = wrapped((x ^ (x % 2**32 >> shift)) * factor)
        return wrapped(x ^ (x % 2**32 >> 16))

    key = mix(wrapped(seed ^ 0x243F6A88))
    of_row, of_column = (mix(wrapped(number + key)) | 1 for number in (row, -1 - column))
    return -1 if wrapped(of_row * of_column) < 0 else 1


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_the_signs_are_those_of_the_hash(seed):
    made = signs(Carrier(0.5, seed), 5, 9)
    assert made.tolist() == [[hash_in_whole_numbers(seed, i, j) for j in range(9)] for i in range(5)]


def test_a_tile_has_the_signs_of_its_place():
    rows, columns = hashes(3, 40, 30)
    whole = is_minus(rows, columns)
    assert torch.equal(is_minus(rows[17:25], columns[4:20]), whole[17:25, 4:20])
    larger = is_minus(*hashes(3, 100, 90))
    assert torch.equal(larger[:40, :30], whole)


@pytest.mark.parametrize("seed", [0, 1, 99])
def test_the_signs_look_random(seed):
    sigma = signs(Carrier(0.5, seed), 600, 400).double()
    # a mean, and products of rows and of columns, as of fair coins: five deviations
    assert abs(sigma.mean()) < 5 / (600 * 400) ** 0.5
    assert (sigma @ sigma.T).fill_diagonal_(0).abs().max() < 6 * 400**0.5
    assert (sigma.T @ sigma).fill_diagonal_(0).abs().max() < 6 * 600**0.5
    # the edges of Marchenko and Pastur
    values = torch.linalg.svdvals(sigma)
    assert 0.97 * (600**0.5 + 400**0.5) < values[0] < 1.03 * (600**0.5 + 400**0.5)
    assert values[-1] > 0.9 * (600**0.5 - 400**0.5)


def test_layers_and_experts_have_signs_of_their_own():
    made = [signs(c, 30, 30).flatten() for c in (CARRIER, Carrier(0.5, 12), CARRIER.of_expert(0), CARRIER.of_expert(1))]
    for i, first in enumerate(made):
        for second in made[i + 1 :]:
            assert abs((first * second).mean()) < 0.2


@pytest.mark.parametrize("form", ["sinc", "residual", "linear"])
@pytest.mark.parametrize("offset", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("num_basis", [3, 5, 11, 15])
def test_every_start_has_its_slopes(form, offset, num_basis):
    wanted = {"closed": (1.0, 0.0), "half": (0.5**0.5, 0.5**0.5), "open": (0.0, 1.0)}
    for start in STARTS:
        c = starting_coefficients(num_basis, form, offset, start)
        m, g = slopes(c, offset, form)
        torch.testing.assert_close((m, g), tuple(map(torch.tensor, wanted[start])), atol=1e-5, rtol=0)
        assert gate(c, offset, form).item() == pytest.approx(wanted[start][1] ** 2, abs=1e-5)


def test_a_phi_without_slope_has_no_gate():
    assert gate(torch.zeros(5), 0.5, "sinc") == 0
    with pytest.raises(ValueError, match="no coefficients"):
        delta_weight(torch.ones(1, 2), torch.ones(2, 1), None, 1.0, 1.0, phi="sine", carrier=CARRIER)


@pytest.mark.parametrize("form", ["sinc", "residual", "linear"])
@pytest.mark.parametrize("offset", [0.1, 0.5, 1.3])
def test_the_update_is_zero_where_B_is_for_every_c(form, offset):
    A, many = torch.randn(3, 20), 2 if form == "linear" else 11
    for _ in range(5):
        dW = delta_weight(A, torch.zeros(10, 3), torch.randn(many), 0.1, 2.0, phi=form, carrier=Carrier(offset, 5))
        assert torch.equal(dW, torch.zeros(10, 20))


@pytest.mark.parametrize("form", ["sinc", "residual", "linear"])
def test_the_rank_at_first_order_is_r_where_the_gate_is_closed_and_full_where_it_is_not(form):
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 40), (40, 2)))
    B *= 1e-7
    for start, rank in (("closed", 2), ("half", 40), ("open", 40)):
        c = starting_coefficients(11, form, 0.5, start).double()
        dW = delta_weight(A, B, c, 1.0, 1.0, phi=form, carrier=CARRIER)
        values = torch.linalg.svdvals(dW)
        assert (values > 1e-4 * values[0]).sum() == rank, start
        # two slopes and no others
        m, g = slopes(c, 0.5, form)
        sigma = signs(CARRIER, 40, 40).double()
        torch.testing.assert_close(dW / (B @ A), m + g * sigma, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["sinc", "residual", "linear"])
def test_gradients_of_the_definition(form):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    def update(A, B, c):
        return delta_weight(A, B, c, 0.7, 1.5, phi=form, carrier=CARRIER)

    assert torch.autograd.gradcheck(update, (random(2, 5), random(4, 2), random(2 if form == "linear" else 5)))
