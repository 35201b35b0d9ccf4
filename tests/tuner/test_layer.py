import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lrlora import InputError, LRLoraConfig, layer_ranks
from lrlora.method import update as definition
from lrlora.tuner import deltas
from lrlora.tuner.theta import GAIN
from lrlora.tuner.types import Linear
from tests.conftest import disturb, rel_rms, tiny_bert, token_ids


def adapted(out: int = 24, within: int = 16, dtype: torch.dtype = torch.float32, **fields) -> tuple[nn.Module, Linear]:
    """A model of one linear layer named `layer`, adapted."""
    torch.manual_seed(3)
    model = nn.Sequential()
    model.add_module("layer", nn.Linear(within, out))
    model = get_peft_model(model.to(dtype), LRLoraConfig(**{"r": 4, "target_modules": ["layer"], **fields}))
    layer = model.base_model.model.layer
    assert isinstance(layer, Linear)
    return model, layer


@pytest.mark.parametrize("phi", ["sinc", "residual", "sine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fresh_adapter_changes_nothing(phi, dtype):
    model, layer = adapted(dtype=dtype, phi=phi)
    x = torch.randn(5, 16, dtype=dtype)
    assert layer.get_delta_weight("default").abs().max() == 0
    with model.disable_adapter():
        base = model(x)
    assert base.dtype == model(x).dtype == dtype
    torch.testing.assert_close(model(x), base, rtol=0, atol=0)


@pytest.mark.parametrize("phi", ["sinc", "residual"])
@pytest.mark.parametrize("num_basis", [3, 5, 11, 15])
def test_the_first_gradient_of_b_equals_lora_s(phi, num_basis):
    _, ours = adapted(phi=phi, num_basis=num_basis)
    torch.manual_seed(3)
    lora = nn.Sequential()
    lora.add_module("layer", nn.Linear(16, 24))
    lora = get_peft_model(lora, LoraConfig(r=4, lora_alpha=8, target_modules=["layer"])).base_model.model.layer
    with torch.no_grad():
        lora.lora_A["default"].weight.copy_(ours.delta("default").A)
    x, direction = torch.randn(6, 16), torch.randn(6, 24)
    (ours(x) * direction).sum().backward()
    (lora(x) * direction).sum().backward()
    torch.testing.assert_close(ours.delta("default").B.grad, lora.lora_B["default"].weight.grad, rtol=1e-5, atol=1e-6)


def test_the_first_gradient_of_b_is_not_zero_for_the_fixed_sine():
    _, layer = adapted(phi="sine")
    layer(torch.randn(6, 16)).square().sum().backward()
    assert layer.delta("default").B.grad.abs().min() > 0


def test_c_has_a_gradient_by_the_second_step():
    model, layer = adapted()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, y = torch.randn(8, 16), torch.randn(8, 24)
    for _ in range(2):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    gradient = layer.delta("default").theta.grad
    assert gradient[5] == 0, "the middle coefficient has no effect"
    assert gradient[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10]].abs().min() > 0


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


def test_factors_stay_float32_when_the_base_is_cast():
    _model, layer = adapted(dtype=torch.bfloat16)
    delta = layer.delta("default")
    assert {delta.A.dtype, delta.B.dtype, delta.theta.dtype, delta.tau.dtype} == {torch.float32}


def test_factors_follow_the_base_only_if_peft_s_autocast_is_switched_off():
    base = nn.Sequential()
    base.add_module("layer", nn.Linear(16, 24))
    config = LRLoraConfig(r=2, target_modules=["layer"])
    model = get_peft_model(base.bfloat16(), config, autocast_adapter_dtype=False)
    disturb(model)
    delta = model.base_model.model.layer.delta("default")
    assert {delta.A.dtype, delta.B.dtype, delta.theta.dtype} == {torch.bfloat16}
    assert delta.tau.dtype == torch.float32
    model(torch.randn(3, 16, dtype=torch.bfloat16)).sum().backward()
    assert delta.theta.grad.isfinite().all()


def test_a_projection_inside_multihead_attention_is_refused():
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(InputError, match="MultiheadAttention"):
        get_peft_model(model, LRLoraConfig(target_modules=["out_proj"]))


def test_layers_are_leaves_that_fsdp_and_ddp_can_wrap():
    model = get_peft_model(tiny_bert(), LRLoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    found = deltas(model)
    assert len(found) == 13
    for _, _, _, delta in found:
        assert not list(delta.children())
        assert delta.weight is delta.A


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


def test_a_training_step_moves_every_part_of_the_adapter():
    model = get_peft_model(tiny_bert(), LRLoraConfig(r=2, target_modules=["query", "dense"], task_type="SEQ_CLS"))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        model(input_ids=token_ids(), labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert name not in before or not torch.equal(before[name], parameter), name


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Of one training step on the same tokens."""
    model.train()
    model.zero_grad()
    model(input_ids=token_ids(), labels=torch.tensor([0, 2])).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def adapted_bert(**fields) -> nn.Module:
    """The tiny BERT, adapted everywhere and moved away from its start."""
    fields = {"r": 2, "target_modules": "all-linear", "task_type": "SEQ_CLS", **fields}
    model = get_peft_model(tiny_bert(), LRLoraConfig(**fields))
    disturb(model)
    return model


def test_gradient_checkpointing_changes_nothing():
    model = adapted_bert()
    plain = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[name], rtol=0, atol=0)


def test_the_whole_model_compiles_into_one_graph():
    # in a process of its own: the shape checks of this suite would break the graph
    script = """
import torch, lrlora
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification
torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
base = BertForSequenceClassification(BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
model = get_peft_model(base, lrlora.LRLoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
for *_, delta in lrlora.tuner.deltas(model):
    torch.nn.init.normal_(delta.B, std=0.02)
given = {"input_ids": torch.randint(3, 64, (2, 7)), "labels": torch.tensor([0, 1])}

def gradients(call):
    model.zero_grad()
    call(**given).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]

compiled = torch.compile(model.train(), fullgraph=True)
for ours, plain in zip(gradients(compiled), gradients(model), strict=True):
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
model.eval()
with torch.no_grad():
    torch.testing.assert_close(compiled(**given).logits, model(**given).logits, rtol=1e-4, atol=1e-5)
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert ended.stdout.strip() == "done", ended.stderr[-3000:]


def test_a_layer_that_is_used_twice_adds_up_both_gradients():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    model = get_peft_model(Twice(), LRLoraConfig(r=2, target_modules=["layer"]))
    disturb(model)
    layer = model.base_model.model.layer
    delta, x = layer.delta("default"), torch.randn(3, 16)
    model(x).sum().backward()
    leaf = layer.get_delta_weight("default").requires_grad_()
    weight = layer.base_layer.weight + leaf
    bias = layer.base_layer.bias
    nn.functional.linear(torch.tanh(nn.functional.linear(x, weight, bias)), weight, bias).sum().backward()
    A, B, c = (t.detach().clone().requires_grad_() for t in (delta.A, delta.B, delta.c))
    dW = definition.delta_weight(A, B, c, delta.tau, layer.scaling["default"], phi="sinc")
    found = (delta.A.grad, delta.B.grad, delta.theta.grad / GAIN)
    for ours, truth in zip(found, torch.autograd.grad(dW, (A, B, c), leaf.grad), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


def test_other_parameters_by_functional_call():
    model = adapted_bert()
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def loss(parameters):
        out = torch.func.functional_call(
            model, parameters, (), {"input_ids": token_ids(), "labels": torch.tensor([0, 2])}
        )
        return out.loss

    name = next(n for n in parameters if n.endswith("delta.default.B"))
    leaf = parameters[name].clone().requires_grad_()
    loss({**parameters, name: leaf}).backward()
    model.eval()
    torch.testing.assert_close(leaf.grad, gradients(model)[name])


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_training_under_autocast_is_close_to_float32(half):
    model = adapted_bert()
    plain = gradients(model)
    with torch.autocast("cpu", half):
        rounded = gradients(model)
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32, name
        assert torch.cosine_similarity(gradient.flatten(), plain[name].flatten(), dim=0) > 0.98, name


def test_a_model_in_bfloat16_trains():
    model = get_peft_model(tiny_bert().bfloat16(), LRLoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    disturb(model)
    for name, gradient in gradients(model).items():
        assert gradient.isfinite().all(), name
    assert {delta.A.grad.dtype for *_, delta in deltas(model)} == {torch.float32}


def test_merging_holds_no_second_copy_on_the_device():
    model, layer = adapted()
    disturb(model)
    address = layer.base_layer.weight.data_ptr()
    model.merge_adapter()
    snapshot = layer._before_merge
    held = [v for v in vars(snapshot).values() if isinstance(v, torch.Tensor)]
    assert len(held) == 1
    assert held[0].data_ptr() != address, "the weight as it was must be free to go once it is replaced"
