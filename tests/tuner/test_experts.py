"""Adapters on the 3-D weights of experts, through target_parameters."""

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from lrlora import LRLoraConfig, delta_weight, layer_ranks, param_groups
from lrlora.tuner import deltas
from lrlora.tuner.explain import computation_of
from tests.conftest import disturb, move_knees, rel_rms, token_ids
from tests.tuner.experts import BOTH, adapted, gpt_oss, mixtral, qwen_moe


@pytest.mark.parametrize("make", [mixtral, qwen_moe, gpt_oss])
def test_it_trains_saves_loads_and_merges(make, tmp_path):
    model = adapted(make, target_modules=["q_proj"])
    assert [name.removeprefix("base_model.model.") for name, *_ in deltas(model)][:3] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.0.mlp.experts.gate_up_proj",
    ]
    ids = token_ids(4, 9)
    with torch.no_grad():
        base = make()(ids).logits
        torch.testing.assert_close(model(ids).logits, base, rtol=0, atol=0)
    optimizer = torch.optim.AdamW(param_groups(model.train(), lr=1e-2))
    before = {name: p.clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(6):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        logits = model(ids).logits
        assert not torch.allclose(logits, base, atol=1e-3)
        again = PeftModel.from_pretrained(make(), tmp_path).eval()
        torch.testing.assert_close(again(ids).logits, logits, rtol=0, atol=0)
        with model.disable_adapter():
            torch.testing.assert_close(model(ids).logits, base, rtol=0, atol=0)
        model.merge_adapter()
        torch.testing.assert_close(model(ids).logits, logits)
        model.unmerge_adapter()
        torch.testing.assert_close(model(ids).logits, logits)
        merged = model.merge_and_unload()
        assert type(merged.model.layers[0].mlp.experts) is type(make().model.layers[0].mlp.experts)
        torch.testing.assert_close(merged(ids).logits, logits)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_every_way_in_which_transformers_runs_experts_gives_the_same(implementation):
    expected = adapted(mixtral)
    model = adapted(lambda: mixtral(implementation))
    for m in (expected, model):
        disturb(m)
    ids = token_ids(4, 9)
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, rtol=1e-4, atol=1e-5)
    for m in (expected, model):
        m.train()(input_ids=ids, labels=ids).loss.backward()
    for (name, p), (_, q) in zip(model.named_parameters(), expected.named_parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("share", ["matrix", "type", "global", "frozen"])
def test_the_update_of_each_expert_is_the_definition_s(share):
    model = adapted(gpt_oss, share=share)
    disturb(model)
    _, layer, _, delta = deltas(model)[0]
    dW = layer.get_delta_weight("default")
    assert dW.shape == layer.get_base_layer().down_proj.shape
    for e in range(4):
        c = delta.c if delta.c.ndim == 1 else delta.c[e]
        expected = delta_weight(
            delta.A[e].double(), delta.B[e].double(), c.double(), delta.tau[e], 2.0, phi="sinc",
            impl="definition",
        )  # fmt: skip
        # the parameter is [experts, in, out]
        assert rel_rms(dW[e].T, expected) < 1e-5
    assert delta.c.shape == ((4, 11) if share == "matrix" else (11,))
    coefficients = {id(d.theta) for *_, d in deltas(model)}
    assert len(coefficients) == {"matrix": 4, "type": 2, "global": 1, "frozen": 4}[share]


def test_an_expert_that_no_token_came_to_has_no_gradient():
    model = adapted()
    disturb(model)
    model.train()(input_ids=token_ids(1, 1), labels=token_ids(1, 1))
    logits = model(token_ids(1, 1)).logits
    logits.sum().backward()
    delta = deltas(model)[0][3]
    hit = delta.A.grad.flatten(1).any(1)
    assert hit.sum() == 2, "one token goes to two of the four experts"


def test_checkpointed_activations_give_the_same_gradients():
    ids = token_ids(4, 9)
    gradients = []
    for is_checkpointed in (False, True):
        model = adapted()
        disturb(model)
        if is_checkpointed:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        gradients.append([delta.B.grad for *_, delta in deltas(model)])
    torch.testing.assert_close(*gradients)


def test_a_plain_matrix_can_be_chosen_as_well():
    router = ["mlp.gate.weight"]
    model = adapted(target_parameters=router)
    ids = token_ids()
    base = model(ids).logits
    disturb(model)
    logits = model(ids).logits
    assert [tuple(delta.A.shape) for *_, delta in deltas(model)] == [(2, 16), (2, 16)]
    assert not torch.allclose(logits, base)
    model.train()(ids).logits.sum().backward()
    assert all(delta.theta.grad.any() for *_, delta in deltas(model))
    torch.testing.assert_close(model.eval().merge_and_unload()(ids).logits, logits)


def test_several_adapters():
    model = adapted()
    disturb(model)
    model.add_adapter("wide", LRLoraConfig(r=3, num_basis=5, target_modules=[], target_parameters=BOTH))
    disturb(model, "wide")
    ids = token_ids()
    first = model(ids).logits
    model.set_adapter("wide")
    second = model(ids).logits
    assert not torch.allclose(first, second)
    model.base_model.set_adapter(["default", "wide"])
    both = model(ids).logits
    model.merge_adapter()
    torch.testing.assert_close(model(ids).logits, both)
    model.unmerge_adapter()
    model.delete_adapter("wide")
    model.set_adapter("default")
    torch.testing.assert_close(model(ids).logits, first)


def test_ranks_and_knees_are_those_of_each_expert():
    model = adapted(tau="auto", tau_warmup_steps=1)
    disturb(model)
    delta = deltas(model)[0][3]
    with torch.no_grad():
        delta.B[0] *= 10
    assert move_knees(model, step=1, total_steps=10)
    for e in range(4):
        Z = delta.B[e] @ delta.A[e]
        torch.testing.assert_close(delta.tau[e], Z.square().mean().sqrt(), rtol=1e-4, atol=0)
    rows = layer_ranks(model)
    assert len(rows) == 2 * 2 * 4
    assert [(row.layer, row.expert) for row in rows[:2]] == [
        ("model.layers.0.mlp.experts.down_proj.0", 0),
        ("model.layers.0.mlp.experts.down_proj.1", 1),
    ]
    assert {row.module for row in rows} == {"mlp.experts.down_proj", "mlp.experts.gate_up_proj"}
    assert {row.kind for row in rows} == {"mlp"}
    assert all(row.rms_over_tau == pytest.approx(1, rel=1e-4) for row in rows)
    assert computation_of(model) == [
        "4 layers: the module computes with W0 + dW in the place of its parameter; passes: native"
    ]


def test_half_precision_is_warned_of():
    with pytest.warns(UserWarning, match=r"rounded to torch.bfloat16, in which small updates are lost"):
        model = adapted(lambda: mixtral().bfloat16())
    disturb(model)
    assert model(token_ids()).logits.dtype == torch.bfloat16
    assert {delta.A.dtype for *_, delta in deltas(model)} == {torch.float32}


def test_the_parameter_is_back_in_its_place_after_an_error():
    model = adapted()
    experts = model.base_model.model.model.layers[0].mlp.experts
    with pytest.raises(TypeError):
        experts("not", "what", "experts", "take")
    assert isinstance(experts.get_base_layer().down_proj, nn.Parameter)
    assert "down_proj" not in experts.get_base_layer().__dict__


def test_checkpoint_of_the_block_alone():
    # the module of experts runs again within the wrapper, so that it sees W0 + dW again
    model = adapted()
    disturb(model)
    experts = model.base_model.model.model.layers[0].mlp.experts
    x, index, weights = torch.randn(5, 16), torch.randint(0, 4, (5, 2)), torch.rand(5, 2)
    gradients = []
    for run in (experts, lambda *given: checkpoint(experts, *given, use_reentrant=False)):
        model.zero_grad()
        run(x, index, weights).sum().backward()
        gradients.append(experts.delta("default").A.grad.clone())
    torch.testing.assert_close(*gradients)
