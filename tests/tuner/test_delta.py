"""What is trained of one layer: where it starts, its first gradients, its precision, and how it is laid out."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lrlora import LRLoraConfig
from lrlora.tuner import deltas
from tests.conftest import disturb, tiny_bert, token_ids
from tests.tuner.cases import adapted


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


def test_layers_are_leaves_that_fsdp_and_ddp_can_wrap():
    model = get_peft_model(tiny_bert(), LRLoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    found = deltas(model)
    assert len(found) == 13
    for _, _, _, delta in found:
        assert not list(delta.children())
        assert delta.weight is delta.A


def test_a_training_step_moves_every_part_of_the_adapter():
    model = get_peft_model(tiny_bert(), LRLoraConfig(r=2, target_modules=["query", "dense"], task_type="SEQ_CLS"))
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        model(input_ids=token_ids(), labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert name not in before or not torch.equal(before[name], parameter), name
