"""A, B, c and tau stay in float32 when the model is cast, and a merged weight comes back in its present precision."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

from lrlora import LRLoraConfig, param_groups
from lrlora.tuner import deltas
from tests.conftest import disturb, tiny_llama, token_ids

CASTS = {
    "to": lambda model: model.to(torch.bfloat16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "to with a device": lambda model: model.to("cpu", torch.float16),
    "to like a tensor": lambda model: model.to(torch.zeros(1, dtype=torch.bfloat16)),
    "type": lambda model: model.type(torch.bfloat16),
}
PARTS = ("A", "B", "theta", "tau")


def adapted(autocast_adapter_dtype: bool = True, **fields) -> nn.Module:
    config = LRLoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **fields})
    model = get_peft_model(tiny_llama(), config, autocast_adapter_dtype=autocast_adapter_dtype)
    disturb(model)
    return model.train()


def values(model: nn.Module) -> list[torch.Tensor]:
    return [getattr(delta, part).detach().clone() for *_, delta in deltas(model) for part in PARTS]


@pytest.mark.parametrize("share", ["matrix", "global", "frozen"])
@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_leaves_the_adapter_as_it_is(cast, share):
    model = adapted(share=share)
    parameters, before = list(model.parameters()), values(model)
    CASTS[cast](model)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(values(model), before, strict=True))
    assert model.base_model.model.lm_head.weight.dtype in (torch.bfloat16, torch.float16)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True)), "an optimizer holds them"


def test_c_moves_in_every_layer_of_a_model_cast_in_the_middle_of_training():
    model = adapted()
    optimizer = torch.optim.AdamW(param_groups(model, lr=2e-5, c_lr=2e-4))
    ids = token_ids()
    model(input_ids=ids, labels=ids).loss.backward()
    model.to(torch.bfloat16)
    assert {delta.theta.grad.dtype for *_, delta in deltas(model)} == {torch.float32}
    before = [delta.c.detach().clone() for *_, delta in deltas(model)]
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
    assert all((delta.c != c).sum() == 10 for (*_, delta), c in zip(deltas(model), before, strict=True))


def test_c_moves_under_the_trainer(tmp_path):
    model = adapted().to(torch.bfloat16)
    before = [delta.c.detach().clone() for *_, delta in deltas(model)]
    rows = [{"input_ids": row, "labels": row} for row in token_ids(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, learning_rate=2e-4, report_to=[], use_cpu=True, disable_tqdm=True,
        save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    assert all((delta.c != c).sum() == 10 for (*_, delta), c in zip(deltas(model), before, strict=True))


def test_double_is_double_and_comes_back():
    model = adapted()
    before = values(model)
    model.double()
    assert {value.dtype for value in values(model)} == {torch.float64}
    model.bfloat16()
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(values(model), before, strict=True))


def test_who_asked_for_the_base_s_precision_gets_it_but_not_for_tau():
    model = adapted(autocast_adapter_dtype=False).half()
    for *_, delta in deltas(model):
        assert {delta.A.dtype, delta.B.dtype, delta.theta.dtype} == {torch.float16}
        assert delta.tau.dtype == torch.float32


def test_memory_made_for_a_model_on_the_meta_device_is_float32():
    model = adapted().to("meta")
    model.bfloat16().to_empty(device="cpu")
    assert {value.dtype for value in values(model)} == {torch.float32}


@pytest.mark.parametrize("name", ["half", "bfloat16", "double"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding, nn.Conv1d])
def test_unmerging_after_a_cast_gives_the_weight_in_the_present_precision(kind, name):
    base = nn.Sequential()
    layers = {nn.Linear: (16, 24), nn.Embedding: (24, 16), nn.Conv1d: (4, 6, 3)}
    base.add_module("layer", kind(*layers[kind]))
    want = getattr(base.layer.weight.detach().clone(), name)()
    model = get_peft_model(base, LRLoraConfig(r=2, target_modules=["layer"]))
    disturb(model)
    model.merge_adapter()
    getattr(model, name)()
    merged = model.base_model.model.layer.base_layer.weight.clone()
    model.unmerge_adapter()
    weight = model.base_model.model.layer.base_layer.weight
    assert weight.dtype == want.dtype and torch.equal(weight, want) and not torch.equal(weight, merged)


def test_merging_again_after_a_cast_takes_the_present_precision():
    model = adapted()
    model.merge_adapter()
    model.half()
    model.unmerge_adapter()
    model.merge_adapter()
    layer = deltas(model)[0][1]
    assert layer.base_layer.weight.dtype == torch.float16
    assert model(input_ids=token_ids()).logits.isfinite().all()
