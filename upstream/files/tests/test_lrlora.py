# What is tested of every method is in test_custom_models.py and the files beside it; this file has what only LR-LoRA does.

import math

import pytest
import torch
from torch import nn

from peft import LRLoraConfig, PeftModel, get_peft_model
from peft.tuners.lrlora import ops
from peft.tuners.lrlora.carrier import Carrier, signs, starting_coefficients
from peft.tuners.lrlora.model import deltas
from peft.tuners.lrlora.nonlinearity import initial_coefficients, phi
from peft.tuners.lrlora.tau_callback import follow_tau


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin0 = nn.Linear(12, 24)
        self.lin1 = nn.Linear(24, 6)

    def forward(self, x):
        return self.lin1(torch.relu(self.lin0(x)))


def mlp_with_adapter(**kwargs):
    torch.manual_seed(0)
    return get_peft_model(MLP(), LRLoraConfig(r=2, target_modules=["lin0", "lin1"], **kwargs))


class TestOps:
    @pytest.mark.parametrize("form", ["sinc", "residual"])
    @pytest.mark.parametrize("is_carried", [False, True])
    def test_output_and_gradients_are_those_of_the_definition(self, form, is_carried):
        torch.manual_seed(0)
        carrier = Carrier(offset=0.5, seed=3) if is_carried else None
        start = (
            starting_coefficients(11, form, 0.5, "half")
            if is_carried
            else initial_coefficients(num_basis=11, form=form)
        )
        x, A, B = torch.randn(5, 12), torch.randn(2, 12), torch.randn(8, 2)
        leaves = [t.double().requires_grad_() for t in (x, A, B, start + 0.1 * torch.randn(11))]
        W0, bias = torch.randn(8, 12).double(), torch.randn(8).double()
        tau = torch.tensor(0.7).double()

        def by_definition(x, A, B, c):
            delta = None if carrier is None else 0.5 * signs(carrier, 8, 12).double()
            return nn.functional.linear(x, W0 + 2.0 * phi(B @ A, c, tau, form, delta), bias)

        def fast(x, A, B, c):
            return ops.adapted_linear(x, W0, bias, A, B, c, tau, 2.0, phi=form, carrier=carrier)

        dy = torch.randn(5, 8).double()
        expected, found = by_definition(*leaves), fast(*leaves)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, leaves, dy), torch.autograd.grad(expected, leaves, dy))

    def test_nothing_of_the_size_of_the_weight_is_kept_for_the_backward_pass(self):
        x, A, B = torch.randn(3, 64), torch.randn(2, 64), torch.randn(64, 2, requires_grad=True)
        kept = []

        def pack(tensor):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            ops.adapted_linear(
                x, torch.randn(64, 64), None, A, B, initial_coefficients(11, "sinc"), 0.1, 1.0, phi="sinc"
            )
        assert kept
        assert max(kept) < 64 * 64


class TestLRLora:
    def test_rank_of_the_update_exceeds_r(self):
        model = mlp_with_adapter(init_weights=False)
        layer = model.base_model.model.lin0
        dW = layer.get_delta_weight("default")
        delta = layer.delta("default")
        assert torch.linalg.matrix_rank(delta.B @ delta.A) == 2
        assert torch.linalg.matrix_rank(dW) > 2

    def test_without_a_knee_the_update_is_that_of_lora(self):
        model = mlp_with_adapter(init_weights=False, tau="auto")
        layer = model.base_model.model.lin0
        delta = layer.delta("default")
        assert torch.isinf(delta.tau)
        torch.testing.assert_close(layer.get_delta_weight("default"), 2.0 * delta.B @ delta.A)

    def test_tau_follows_the_entries_of_the_product(self):
        model = mlp_with_adapter(init_weights=False, tau="auto", kappa=1.5, tau_warmup_steps=2)
        x = torch.randn(4, 12)
        assert not follow_tau(model, step=1, total_steps=10)
        model(x)
        assert all(torch.isinf(delta.tau) for *_, delta in deltas(model))
        assert follow_tau(model, step=2, total_steps=10)
        model(x)
        for *_, delta in deltas(model):
            rms = (delta.B @ delta.A).square().mean().sqrt()
            torch.testing.assert_close(delta.tau, 1.5 * rms.detach())
        # the last part of training keeps it
        assert not follow_tau(model, step=9, total_steps=10)

    @pytest.mark.parametrize("start, share", [("closed", 0.0), ("half", 0.5), ("open", 1.0)])
    def test_carrier_starts_where_it_is_told_to(self, start, share):
        # gamma = g^2 / (m^2 + g^2), of the update's two parts at first order: with and without the signs
        model = mlp_with_adapter(carrier="signs", carrier_start=start, tau=1e4)
        layer = model.base_model.model.lin0
        delta = layer.delta("default")
        delta.B.data.normal_()
        Z = (delta.B @ delta.A).detach()
        sigma = signs(delta.carrier, *Z.shape)
        ratio = layer.get_delta_weight("default") / (2.0 * Z)
        m, g = (
            ratio[sigma > 0].median() + ratio[sigma < 0].median(),
            ratio[sigma > 0].median() - ratio[sigma < 0].median(),
        )
        assert (g * g / (m * m + g * g)).item() == pytest.approx(share, abs=1e-3)

    def test_layers_can_share_one_phi(self, tmp_path):
        model = mlp_with_adapter(share="global")
        thetas = {id(delta.theta) for *_, delta in deltas(model)}
        assert len(thetas) == 1
        with torch.no_grad():
            for *_, delta in deltas(model):
                delta.B.normal_()
            delta.theta.normal_()
        x = torch.randn(4, 12)
        expected = model.eval()(x)
        model.save_pretrained(tmp_path)
        torch.manual_seed(0)
        loaded = PeftModel.from_pretrained(MLP(), tmp_path)
        assert len({id(delta.theta) for *_, delta in deltas(loaded)}) == 1
        torch.testing.assert_close(loaded(x), expected, rtol=0, atol=0)

    def test_merging_is_exact_and_unmerging_restores_the_weight(self):
        model = mlp_with_adapter(init_weights=False, carrier="signs").eval()
        layer = model.base_model.model.lin0
        before = layer.get_base_layer().weight.detach().clone()
        expected = before + layer.get_delta_weight("default")
        model.merge_adapter()
        assert torch.equal(layer.get_base_layer().weight, expected)
        model.unmerge_adapter()
        assert torch.equal(layer.get_base_layer().weight, before)

    def test_an_even_number_of_functions_is_refused(self):
        with pytest.raises(ValueError, match="num_basis must be odd"):
            LRLoraConfig(num_basis=10)

    def test_adapters_cannot_be_combined_by_weights(self):
        model = mlp_with_adapter()
        model.add_adapter("other", LRLoraConfig(r=2, target_modules=["lin0", "lin1"]))
        with pytest.raises(ValueError, match="cannot combine LR-LoRA adapters"):
            model.base_model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both")

    def test_scale_is_alpha_over_r(self):
        assert LRLoraConfig(r=4, lora_alpha=2).scale_of(rank=4, alpha=2) == 0.5
        assert LRLoraConfig(r=4, use_rslora=True).scale_of(rank=4, alpha=8) == 8 / math.sqrt(4)
