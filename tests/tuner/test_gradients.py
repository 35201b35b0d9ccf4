"""The gradients of a whole model: with checkpointing, compiled, shared, by functional_call, in half precision."""

import subprocess
import sys

import pytest
import torch
from peft import get_peft_model
from torch import nn

from lrlora import LRLoraConfig
from lrlora.method import update as definition
from lrlora.tuner import deltas
from lrlora.tuner.theta import GAIN
from tests.conftest import disturb, tiny_bert, token_ids
from tests.tuner.cases import adapted_bert, gradients


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
from tests.linking import find_libstdcxx
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification
find_libstdcxx()
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


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("is_training", [False, True])
def test_gradients_of_each_row_by_torch_func(is_training):
    model = adapted_bert().train(is_training)
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    ids, labels = token_ids(), torch.tensor([0, 2])

    def loss(parameters, ids, label):
        given = {"input_ids": ids[None], "labels": label[None]}
        return torch.func.functional_call(model, parameters, (), given).loss

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(trained, ids, labels)
    for i in range(len(ids)):
        model.zero_grad()
        model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(found[name][i], parameter.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        per_row = torch.func.vmap(loss, in_dims=(None, 0, 0))(trained, ids, labels)
        torch.testing.assert_close(per_row.mean(), model(input_ids=ids, labels=labels).loss)


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
