import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from lrlora import LRLoraConfig, ops
from tests.conftest import disturb


@pytest.fixture
def adapted(monkeypatch):
    """A model of one adapted layer in evaluation, and a list that grows with every weight that is made."""
    model = nn.Sequential()
    model.add_module("layer", nn.Linear(16, 24))
    model = get_peft_model(model, LRLoraConfig(r=4, target_modules=["layer"])).eval()
    disturb(model)
    made = []
    original = ops.adapted_weight
    monkeypatch.setattr(ops, "adapted_weight", lambda *a, **k: made.append(1) or original(*a, **k))
    return model, made


X = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


def run(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(X)


def fresh(model: nn.Module) -> torch.Tensor:
    """The same without anything kept."""
    return model(X).detach()


def test_it_is_made_once(adapted):
    model, made = adapted
    assert torch.equal(run(model), run(model))
    torch.testing.assert_close(run(model), fresh(model))
    assert len(made) == 1


def change_b(delta, layer):
    with torch.no_grad():
        delta.B.mul_(2)


def change_data(delta, layer):
    delta.c.data.add_(0.5)


def change_tau(delta, layer):
    delta.tau.mul_(0.5)


def change_base(delta, layer):
    with torch.no_grad():
        layer.base_layer.weight.mul_(2)


def replace_base(delta, layer):
    layer.base_layer.weight.data = layer.base_layer.weight.data * 2


def change_scale(delta, layer):
    layer.scale_layer(3.0)


def load(delta, layer):
    layer.load_state_dict({k: v + 0.1 for k, v in layer.state_dict().items()})


@pytest.mark.parametrize("change", [change_b, change_data, change_tau, change_base, replace_base, change_scale, load])
def test_it_is_made_anew_after_any_change(adapted, change):
    model, made = adapted
    before = run(model)
    layer = model.base_model.model.layer
    change(layer.delta("default"), layer)
    assert not torch.equal(run(model), before)
    torch.testing.assert_close(run(model), fresh(model))
    assert len(made) == 2


def test_it_is_not_used_where_gradients_are_wanted(adapted):
    model, made = adapted
    run(model)
    model(X).sum().backward()
    assert model.base_model.model.layer.delta("default").B.grad is not None
    assert len(made) == 1


def test_training_merging_and_copying_drop_it(adapted):
    model, _ = adapted
    kept = model.base_model.model.layer.delta("default")._kept
    for drop in (model.train, model.merge_adapter):
        model.unmerge_adapter() if model.base_model.model.layer.merged else None
        model.eval()
        run(model)
        assert kept._weight is not None
        assert copy.deepcopy(model).base_model.model.layer.delta("default")._kept._weight is None
        drop()
        assert kept._weight is None


def test_looking_at_the_update_keeps_nothing_and_drops_nothing(adapted):
    model, made = adapted
    run(model)
    layer = model.base_model.model.layer
    kept = layer.delta("default")._kept
    weight = kept._weight
    assert weight is not None
    layer.get_delta_weight("default")
    assert kept._weight is weight
    kept.drop()
    layer.get_delta_weight("default")
    assert kept._weight is None
    assert len(made) == 1


def test_inference_mode_and_back(adapted):
    model, made = adapted
    with torch.inference_mode():
        first = model(X)
    assert torch.equal(run(model), first)
    torch.testing.assert_close(fresh(model), first)
    assert len(made) == 1


def test_other_parameters_by_functional_call(adapted):
    model, _ = adapted
    before = run(model)
    other = {name: value * 2 for name, value in model.named_parameters()}
    with torch.no_grad():
        changed = torch.func.functional_call(model, other, X)
    assert not torch.allclose(changed, before)
    assert torch.equal(run(model), before)
