"""Which modules "all-linear" means, and the line about those that it leaves out."""

import re
import warnings

import peft
import pytest
import torch
from torch import nn

from lrlora import InputError, LRLoraConfig, deltas
from tests.conftest import disturb, tiny_llama, token_ids
from tests.tuner.test_models import mamba


class Odd(nn.Linear):
    """A linear layer that computes in a way of its own."""

    def forward(self, x):
        return super().forward(x) + 1


class Model(nn.Module):
    """A top-level `odd`, which is linear, besides two that are not quite, and an attention."""

    def __init__(self, **fields):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"odd": Odd(4, 4), "up": nn.Linear(4, 4)}) for _ in range(2)])
        self.attention = nn.MultiheadAttention(4, 2, **fields)
        self.odd = nn.Linear(4, 4)

    def forward(self, x):
        for layer in self.layers:
            x = layer["odd"](layer["up"](x))
        return self.odd(self.attention(x, x, x)[0])


def adapted(model, **fields):
    """Names of what "all-linear" adapts, the model, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.get_peft_model(model, LRLoraConfig(r=2, target_modules="all-linear", **fields))
    names = {name.removeprefix("base_model.model.") for name, *_ in deltas(model)}
    return names, model, [str(w.message) for w in caught if w.category is UserWarning]


ATTENTION = {"attention", "attention.base_layer.out_proj"}


def test_what_cannot_be_adapted_is_left_out_in_one_line(tmp_path):
    names, model, said = adapted(Model())
    assert names == {"layers.0.up", "layers.1.up", "odd"} | ATTENTION
    assert said == [
        '"all-linear" leaves out what LR-LoRA cannot adapt: layers.*.odd (2 layers): its type is '
        f"{Odd.__module__}.Odd; supported: torch.nn.Linear, Embedding, Conv1d, Conv2d, Conv3d and "
        "MultiheadAttention, transformers' Conv1D, and quantised linear layers"
    ]
    disturb(model)
    x = torch.randn(2, 3, 4)
    want = model.eval()(x)
    model.save_pretrained(tmp_path)
    # the name "odd" would be taken for the end of layers.0.odd
    again = peft.PeftModel.from_pretrained(base_of(model), tmp_path).eval()
    torch.testing.assert_close(again(x), want, rtol=0, atol=0)


def base_of(model):
    return model.unload()


def test_excluded_modules_are_not_spoken_of():
    names, _, said = adapted(Model(), exclude_modules=r"layers\.\d\.odd")
    assert names == {"layers.0.up", "layers.1.up", "odd"} | ATTENTION
    assert said == []


@pytest.mark.parametrize("excluded", ["attention", "out_proj"])
def test_an_attention_is_left_alone_with_either_name_excluded(excluded):
    names, _, _ = adapted(Model(), exclude_modules=[excluded])
    assert not names & ATTENTION and "layers.0.up" in names


@pytest.mark.parametrize(
    ("model", "config", "reason"),
    [({"kdim": 3}, {}, "its kdim or vdim differs"), ({}, {"lora_dropout": 0.1}, "lora_dropout=0.1 acts on the input")],
)
def test_an_attention_that_cannot_be_adapted_is_named(model, config, reason):
    names, _, said = adapted(Model(**model), **config)
    assert not names & ATTENTION and "odd" in names
    assert len(said) == 1 and re.search(rf"; attention: {reason}|: attention: {reason}", said[0])


def test_a_second_adapter_means_the_same_layers():
    first, model, _ = adapted(Model())
    with pytest.warns(UserWarning, match=r"layers\.\*\.odd"):
        model.add_adapter("other", LRLoraConfig(r=3, target_modules="all-linear"))
    second = {name.removeprefix("base_model.model.") for name, *_ in deltas(model, "other")}
    assert second == first


def test_mamba_s_kernels_read_the_rest():
    names, model, said = adapted(mamba(), task_type="CAUSAL_LM")
    assert names == {f"backbone.layers.{n}.mixer.in_proj" for n in range(2)}
    assert len(said) == 1
    read = ", ".join(f"backbone.layers.*.mixer.{name} (2 layers)" for name in ("dt_proj", "out_proj", "x_proj"))
    assert f"cannot adapt: {read}: MambaMixer hands its weight to a fused kernel" in said[0]
    assert model(token_ids(2, 5)).logits.isfinite().all()


def test_an_explicit_name_is_still_refused():
    with pytest.raises(InputError, match=r"cannot adapt layers\.0\.odd \(4x4\): its type is"):
        peft.get_peft_model(Model(), LRLoraConfig(target_modules=["odd"]))


def test_a_model_without_a_layer_to_adapt_is_refused():
    with pytest.raises(InputError, match=r"can adapt none of the linear layers of this model: 0: its type is .*Odd"):
        peft.get_peft_model(nn.Sequential(Odd(4, 4)), LRLoraConfig(target_modules="all-linear"))


def test_it_is_peft_s_choice_elsewhere():
    names, _, said = adapted(tiny_llama(), task_type="CAUSAL_LM")
    plain = peft.get_peft_model(tiny_llama(), peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    theirs = {n.removeprefix("base_model.model.") for n, m in plain.named_modules() if hasattr(m, "lora_A")}
    assert names == theirs and said == []
