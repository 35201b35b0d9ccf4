import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import lrlora
from lrlora import InputError, LRLoraConfig, param_groups
from lrlora.tuner import deltas
from tests.conftest import disturb, tiny_bert, tiny_llama, token_ids
from tests.tuner.adapted import SHARES, adapted, logits


def test_the_method_is_registered():
    assert PeftType("LRLORA") is PeftType.LRLORA
    assert PeftType.LRLORA in list(PeftType)
    # importing it again, as a reloading notebook does, changes nothing
    lrlora.tuner.internals.register(LRLoraConfig, lrlora.LRLoraModel)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("phi", ["sinc", "residual"])
def test_save_and_load_are_exact(tmp_path, share, phi):
    model = adapted(share=share, phi=phi)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()
    for (name, _, _, mine), (_, _, _, its) in zip(deltas(model), deltas(again), strict=True):
        for part in ("A", "B", "theta", "tau"):
            assert torch.equal(getattr(mine, part), getattr(its, part)), (name, part)
    assert torch.equal(logits(model), logits(again))


def test_the_sine_is_saved_without_c(tmp_path):
    model = adapted(phi="sine", omega=100.0)
    model.save_pretrained(tmp_path)
    assert not [key for key in load_file(tmp_path / "adapter_model.safetensors") if key.endswith(".theta")]
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()), logits(model))


def test_auto_class_and_a_base_in_a_folder(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, LRLoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS"))
    disturb(model)
    model.eval().save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3)
    assert torch.equal(logits(again), logits(model))


def test_several_adapters():
    model = adapted()
    base = logits(tiny_bert())
    first = logits(model)
    model.add_adapter("second", LRLoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", phi="residual"))
    disturb(model, "second")
    assert torch.equal(logits(model), first), "adding does not activate"
    model.set_adapter("second")
    second = logits(model)
    assert not torch.equal(second, first)
    with model.disable_adapter():
        assert not torch.equal(logits(model), second)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    model.delete_adapter("second")
    assert not [name for name, _ in model.named_modules() if "second" in name]
    assert torch.equal(logits(model), first)
    assert not torch.equal(base, first)


def test_merge_and_unload_leaves_plain_layers_with_the_same_output():
    model = adapted()
    before = logits(model)
    merged = model.merge_and_unload()
    assert not [name for name, m in merged.named_modules() if isinstance(m, lrlora.LRLoraLayer)]
    torch.testing.assert_close(logits(merged), before, rtol=1e-4, atol=1e-5)


def test_unload_gives_the_base_back():
    model = get_peft_model(tiny_bert(), LRLoraConfig(r=4, target_modules=["query", "value"]))
    disturb(model)
    assert torch.equal(logits(model.unload()), logits(tiny_bert()))


def test_merging_one_after_another_equals_merging_at_once():
    model = adapted()
    model.add_adapter("second", LRLoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    disturb(model, "second")
    layer = model.base_model.model.bert.encoder.layer[0].attention.self.query
    model.merge_adapter(["default", "second"])
    at_once = layer.base_layer.weight.clone()
    model.unmerge_adapter()
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="additionally merging second"):
        model.merge_adapter(["second"])
    assert torch.equal(layer.base_layer.weight, at_once)


def test_printing_the_trainable_parameters(capsys):
    adapted(modules_to_save=["classifier"], target_modules=["query"]).print_trainable_parameters()
    # two layers of A [4, 32], B [32, 4], c [11], and the head [3, 32] with its bias
    assert f"trainable params: {2 * (4 * 32 + 32 * 4 + 11) + 3 * 32 + 3:,} " in capsys.readouterr().out


def test_patterns_and_layers():
    model = adapted(
        target_modules=["query", "value"],
        layers_to_transform=[1],
        layers_pattern="layer",
        rank_pattern={"value": 2},
        alpha_pattern={"value": 3},
    )
    found = {name.split(".")[-1]: layer for name, layer, _, _ in deltas(model)}
    assert len(deltas(model)) == 2
    assert found["query"].scaling["default"] == 2
    assert found["value"].r["default"] == 2
    assert found["value"].scaling["default"] == 1.5


@pytest.mark.parametrize("bias", ["all", "lrlora_only"])
def test_biases_can_be_trained_and_are_saved(tmp_path, bias):
    model = adapted(bias=bias, target_modules=["query"])
    trained = [n for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.add_(1)
    of_layers = [name for name in trained if "classifier" not in name]
    assert len(of_layers) == (2 if bias == "lrlora_only" else 18)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()), logits(model))


def test_a_causal_model_trains_generates_and_merges():
    model = get_peft_model(tiny_llama(), LRLoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert len(deltas(model)) == 14
    disturb(model)
    ids = token_ids()
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(delta.theta.grad is not None for _, _, _, delta in deltas(model))
    words = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.merge_and_unload().generate(input_ids=ids, max_new_tokens=4, do_sample=False), words)


def test_an_adapter_on_a_base_of_other_shapes_is_refused_in_one_line(tmp_path):
    adapted().save_pretrained(tmp_path)
    config = tiny_bert().config
    config.hidden_size, config.intermediate_size = 64, 96
    with pytest.raises(InputError, match=r"does not fit this base model: .* is \(4, 32\) in the file and \(4, 64\)"):
        PeftModel.from_pretrained(type(tiny_bert())(config), tmp_path)


def test_an_adapter_on_a_base_with_fewer_layers_says_what_is_dropped(tmp_path):
    adapted().save_pretrained(tmp_path)
    config = tiny_bert().config
    config.num_hidden_layers -= 1
    with pytest.warns(UserWarning, match=r"\d+ tensors of the adapter have no place .* first is .*layer\.1\."):
        PeftModel.from_pretrained(type(tiny_bert())(config), tmp_path)


def test_target_modules_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="q_proj"):
        get_peft_model(tiny_bert(), LRLoraConfig(target_modules=["q_proj"]))


def test_param_groups_hold_every_trained_parameter_once():
    model = adapted(share="type", bias="all")
    groups = param_groups(model, lr=1e-3, c_lr=5e-2, weight_decay=0.1)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    of_c = groups[-1]
    # c = c_start + 10 theta moves at ten times the rate of theta
    assert (of_c["lr"], of_c["weight_decay"]) == (5e-3, 0)
    assert {tuple(p.shape) for p in of_c["params"]} == {(11,)}
    assert param_groups(model, lr=1e-3)[-1]["lr"] == pytest.approx(1e-3)
    groups = param_groups(model, lr=1e-3, b_lr=1.6e-2)
    assert [group["lr"] for group in groups].count(1.6e-2) == 1
    (of_B,) = (group for group in groups if group["lr"] == 1.6e-2)
    assert {id(p) for p in of_B["params"]} == {id(delta.B) for *_, delta in deltas(model)}
    assert sum(len(group["params"]) for group in groups) == len(found)
