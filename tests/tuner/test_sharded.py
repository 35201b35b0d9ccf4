"""A phi in the root of a model, and what processes gather; tests/distributed has the processes themselves."""

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from torch import nn

from lrlora import LRLoraConfig
from lrlora.tuner import deltas
from lrlora.tuner.sharded import is_sharded, put_phi_in_root, size_of, whole_layer, whole_state
from tests.conftest import disturb, tiny_llama, token_ids


def adapted(share: str) -> nn.Module:
    model = get_peft_model(tiny_llama(), LRLoraConfig(r=2, task_type="CAUSAL_LM", share=share, tau=0.5))
    disturb(model)
    return model


@pytest.mark.parametrize(("share", "many"), [("type", 2), ("global", 1), ("block", 2), ("matrix", 0)])
def test_a_phi_in_the_root_is_trained_and_saved_as_before(share, many):
    model, other = adapted(share), adapted(share)
    put_phi_in_root(other)
    in_root = [name for name, _ in other.named_parameters() if name.startswith("shared_phi.")]
    assert len(in_root) == many
    assert not many or not any(n.endswith(".theta") for n, _ in other.named_parameters() if n not in in_root)
    for each in (model, other):
        each.train()(input_ids=token_ids(), labels=token_ids()).loss.backward()
    gradients = [{id(d.theta): d.theta.grad for *_, d in deltas(each)} for each in (model, other)]
    for mine, its in zip(*(found.values() for found in gradients), strict=True):
        torch.testing.assert_close(mine, its)
        assert mine.abs().max() > 0
    saved, known = get_peft_model_state_dict(other), get_peft_model_state_dict(model)
    assert sorted(saved) == sorted(known)
    for name, value in known.items():
        assert torch.equal(saved[name], value), name


def test_the_layers_follow_what_is_registered_in_the_root():
    model = adapted("global")
    put_phi_in_root(model)
    new = nn.Parameter(torch.full_like(next(iter(deltas(model))).delta.theta, 0.25))
    # as FSDP2 does at the beginning and the end of a forward pass
    model.shared_phi[0].theta = new
    assert all(delta.theta is new for *_, delta in deltas(model))
    put_phi_in_root(model)
    assert len(model.shared_phi) == 1, "a second call changes nothing"


def test_what_is_no_shard_is_given_as_it_is():
    model = adapted("matrix")
    assert not is_sharded(model)
    state, known = whole_state(model), get_peft_model_state_dict(model)
    assert all(torch.equal(get_peft_model_state_dict(model, state_dict=state)[name], known[name]) for name in known)
    assert not any(name.endswith("base_layer.weight") for name in state)
    _, layer, _, delta = deltas(model)[0]
    assert size_of(delta.A) == delta.A.numel()
    with whole_layer(layer, delta) as (held, weight):
        assert held is delta and torch.equal(weight, layer.get_base_layer().weight)
