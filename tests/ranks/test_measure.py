"""The rank of every layer, measured whole or by a quick look."""

import pytest
import torch

import lrlora
from lrlora.tuner import deltas
from tests.ranks.adapted import adapted


def test_a_quick_look_agrees_with_a_whole_one():
    model = adapted()
    for quick, whole in zip(lrlora.layer_ranks(model, is_quick=True), lrlora.layer_ranks(model), strict=True):
        assert quick.stable_rank == pytest.approx(whole.stable_rank, rel=1e-5)
        assert (quick.effective_rank, quick.numerical_rank, quick.stable_rank_initial) == (None, None, None)
        assert quick.stable_rank_ba == whole.stable_rank_ba
        assert quick.rms_over_tau == whole.rms_over_tau


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("shape", [(300, 200), (65, 700)])
def test_a_quick_look_at_a_large_matrix_takes_lanczos_steps_to_the_same_rank(shape):
    torch.manual_seed(0)
    A, B = torch.randn(4, shape[1]) / shape[1] ** 0.5, 0.1 * torch.randn(shape[0], 4)
    c = torch.randn(11)
    update = lrlora.ranks.measure.Update("layer.0.query", None, A, B, c, torch.tensor(0.005), 2.0, "sinc")
    quick, whole = (lrlora.ranks.measure.measure(update, None, is_quick=q) for q in (True, False))
    assert quick.stable_rank == pytest.approx(whole.stable_rank, rel=1e-5)
    assert whole.stable_rank > whole.stable_rank_ba


@pytest.mark.parametrize("form", ["sinc", "residual"])
def test_frozen_coefficients_are_no_learned_rank(form):
    model = adapted(phi=form, share="frozen")
    for *_, delta in deltas(model):
        delta.theta.zero_()
    rows = lrlora.layer_ranks(model)
    assert all(row.c_change == 0 and row.stable_rank_initial == row.stable_rank for row in rows)
    (warning, *_) = lrlora.ranks.measure.rank_warnings(rows, form)
    assert "no rank was learned there" in warning and f"{len(rows)} of {len(rows)} layers" in warning


def test_the_second_null_is_the_untrained_phi_on_the_trained_factors():
    model = adapted()
    row = lrlora.layer_ranks(model)[0]
    _, layer, _, delta = deltas(model)[0]
    c = lrlora.method.nonlinearity.initial_coefficients(11, "sinc")
    untrained = lrlora.delta_weight(delta.A, delta.B, c, delta.tau, layer.scaling["default"], phi="sinc")
    assert row.stable_rank_initial == pytest.approx(lrlora.method.rank.stable_rank(untrained), rel=1e-6)
    assert row.c_change == pytest.approx((delta.c - c).abs()[[*range(5), *range(6, 11)]].max().item())
    assert row.stable_rank_initial != pytest.approx(row.stable_rank, rel=1e-3)
