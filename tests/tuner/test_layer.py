import pytest
import torch
from peft import get_peft_model
from torch import nn

from lrlora import LRLoraConfig, layer_ranks
from lrlora.tuner import deltas
from tests.conftest import disturb, rel_rms, tiny_bert
from tests.tuner.cases import adapted


@pytest.mark.parametrize("phi", ["sinc", "residual", "sine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_equals_unmerged_and_unmerge_is_exact(phi, dtype):
    model, layer = adapted(dtype=dtype, phi=phi)
    disturb(model)
    x = torch.randn(5, 16, dtype=dtype)
    before, weight = model(x), layer.base_layer.weight.detach().clone()
    exact = x.double() @ (weight.double() + layer.get_delta_weight("default").double()).T
    exact = exact + layer.base_layer.bias.double()
    model.merge_adapter()
    assert layer.merged
    assert not torch.equal(layer.base_layer.weight, weight)
    assert rel_rms(model(x), exact) <= 1.5 * rel_rms(before, exact) + (1e-7 if dtype == torch.float32 else 4e-3)
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, weight)
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


def test_disabling_a_merged_adapter_restores_the_base():
    model, layer = adapted()
    disturb(model)
    x, weight = torch.randn(5, 16), layer.base_layer.weight.detach().clone()
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(x), nn.functional.linear(x, weight, layer.base_layer.bias), rtol=0, atol=0)
    assert torch.equal(layer.base_layer.weight, weight)


def test_a_safe_merge_refuses_nan_and_leaves_the_weight():
    _model, layer = adapted()
    with torch.no_grad():
        layer.delta("default").B[0, 0] = float("nan")
    weight = layer.base_layer.weight.detach().clone()
    with pytest.raises(ValueError, match="NaN"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, weight)
    assert not layer.merged


@pytest.mark.parametrize("use_rslora", [False, True])
def test_layers_are_scaled_and_put_back(use_rslora):
    model, layer = adapted(use_rslora=use_rslora, lora_alpha=3)
    configured = 3 / 4**0.5 if use_rslora else 3 / 4
    assert layer.scaling["default"] == configured
    layer.set_scale("default", 0.5)
    assert layer.scaling["default"] == 0.5 * configured
    layer.set_scale("unknown", 7.0)
    for scale in (0.25, 3.0):
        layer.scale_layer(scale)
        assert layer.scaling["default"] == 0.5 * configured * scale
        layer.unscale_layer(scale)
        assert layer.scaling["default"] == 0.5 * configured
    layer.unscale_layer()
    assert layer.scaling["default"] == configured
    # as diffusers calls it, and what cannot be divided by gives the configured scale
    layer.scale_layer(0)
    assert layer.scaling["default"] == 0
    layer.unscale_layer(0)
    assert layer.scaling["default"] == configured
    model.add_adapter("second", LRLoraConfig(r=2, target_modules=["layer"]))
    layer.scale_layer(2.0)
    assert layer.scaling == {"default": 2 * configured, "second": 2.0}, "the active ones alone"
    model.base_model.set_adapter(["default", "second"])
    layer.unscale_layer(2.0)
    assert layer.scaling == {"default": configured, "second": 1.0}
    model.delete_adapter("second")
    assert layer.configured_scaling == {"default": configured}


def test_two_active_adapters_add_up():
    model, layer = adapted()
    model.add_adapter("second", LRLoraConfig(r=2, target_modules=["layer"], phi="residual"))
    disturb(model)
    model.base_model.set_adapter(["default", "second"])
    x = torch.randn(5, 16)
    weight = layer.base_layer.weight + layer.get_delta_weight("default") + layer.get_delta_weight("second")
    torch.testing.assert_close(model(x), nn.functional.linear(x, weight, layer.base_layer.bias))


def test_dropout_acts_in_training_only():
    model, _ = adapted(lora_dropout=0.5)
    disturb(model)
    x = torch.randn(5, 16)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_ranks_of_a_model():
    model = get_peft_model(tiny_bert(), LRLoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    disturb(model)
    rows = layer_ranks(model)
    assert len(rows) == 13
    for row, (_, layer, _, _) in zip(rows, deltas(model), strict=True):
        dW = layer.get_delta_weight("default")
        sigma = torch.linalg.svdvals(dW.double())
        assert row.stable_rank == pytest.approx((sigma.square().sum() / sigma[0] ** 2).item(), rel=1e-6)
        assert row.stable_rank_ba <= 2.001
        assert row.relative_norm == pytest.approx((dW.norm() / layer.base_layer.weight.norm()).item(), rel=1e-5)
    assert [row.kind for row in rows[:6]] == ["attention"] * 4 + ["mlp"] * 2
    with pytest.raises(ValueError, match="no LR-LoRA layer with an adapter named 'other'"):
        layer_ranks(model, "other")


def test_merging_holds_no_second_copy_on_the_device():
    model, layer = adapted()
    disturb(model)
    address = layer.base_layer.weight.data_ptr()
    model.merge_adapter()
    snapshot = layer._before_merge
    held = [v for v in vars(snapshot).values() if isinstance(v, torch.Tensor)]
    assert len(held) == 1
    assert held[0].data_ptr() != address, "the weight as it was must be free to go once it is replaced"


def test_why_the_two_products_are_not_combined():
    model, layer = adapted()
    x = torch.randn(2, 16)
    assert layer.why_not_combined(x) is None
    assert "bfloat16" in layer.why_not_combined(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in layer.why_not_combined(x)
    assert "bfloat16" in adapted(dtype=torch.bfloat16)[1].why_not_combined(x)
    _, dropping = adapted(lora_dropout=0.5)
    dropping.train()
    assert "dropout" in dropping.why_not_combined(x)
    dropping.eval()
    assert dropping.why_not_combined(x) is None
    model.add_adapter("second", LRLoraConfig(r=2, target_modules=["layer"]))
    model.base_model.set_adapter(["default", "second"])
    assert "2 adapters" in layer.why_not_combined(x)
    layer.base_layer.register_forward_hook(lambda *_: None)
    model.set_adapter("default")
    assert "hooks" in layer.why_not_combined(x)


def test_both_ways_give_the_same():
    model, layer = adapted()
    disturb(model)
    x = torch.randn(5, 16)
    combined = model(x)
    handle = layer.base_layer.register_forward_hook(lambda *_: None)
    apart = model(x)
    handle.remove()
    torch.testing.assert_close(combined, apart)
