"""An adapter with a carrier on a model: its signs, its types of layer, its files, its exact merge, and its gate."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import lrlora
from lrlora import InputError, LRLoraConfig
from lrlora.method import update as definition
from lrlora.method.carrier import signs, slopes
from lrlora.saved.updates import stored_updates
from lrlora.tuner import deltas
from tests.conftest import disturb, tiny_bert, tiny_llama, token_ids
from tests.tuner.experts import mixtral
from tests.tuner.test_types import LAYERS

SIGNS = {"carrier": "signs"}
FORMS = ["sinc", "residual", "linear"]


def adapted(phi: str = "sinc", **fields) -> PeftModel:
    config = LRLoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", phi=phi, **SIGNS, **fields)
    model = get_peft_model(tiny_llama(), config)
    disturb(model)
    return model.eval()


@pytest.mark.parametrize("phi", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_type_of_layer_has_the_update_of_the_definition(name, phi):
    make, x = LAYERS[name]
    model = torch.nn.Sequential()
    model.add_module("layer", make())
    before = copy.deepcopy(model.layer)
    fields = {"phi": phi, "carrier_start": "half", **SIGNS}
    model = get_peft_model(model, LRLoraConfig(r=2, target_modules=["layer"], **fields)).eval()
    torch.testing.assert_close(model(x), before(x), rtol=0, atol=0)
    disturb(model)
    layer = model.base_model.model.layer
    delta, scale = layer.delta("default"), layer.scaling["default"]
    truth = definition.delta_weight(delta.A, delta.B, delta.c, delta.tau, scale, phi=phi, carrier=delta.carrier)
    torch.testing.assert_close(layer.update_matrix("default"), truth, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        before.weight.add_(layer.get_delta_weight("default"))
    # with a graph and without: rows of an embedding, whole updates, and kept ones
    torch.testing.assert_close(model(x), before(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("phi", FORMS)
@pytest.mark.parametrize("share", ["matrix", "type", "global", "frozen"])
def test_saved_loaded_merged_and_put_back(phi, share, tmp_path):
    model = adapted(phi, share=share, carrier_start="half", carrier_seed=5)
    ids = token_ids()
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_llama(), tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=0)
    again.merge_adapter()
    torch.testing.assert_close(again(ids).logits, expected, rtol=1e-4, atol=1e-5)
    again.unmerge_adapter()
    torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=0)
    of_file = {update.layer: update for update in stored_updates(tmp_path)}
    for name, layer, _, _ in deltas(model):
        update = of_file[name.removeprefix("base_model.model.")]
        torch.testing.assert_close(update.matrix(update.c), layer.update_matrix("default"), rtol=1e-6, atol=1e-9)


def test_a_layer_keeps_its_signs_under_another_name(tmp_path):
    # as a model whose layers are renamed, or that is wrapped in another one, has other names for them
    model = adapted(phi="linear", carrier_start="open")
    model.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    seeds = [value.item() for key, value in keys.items() if key.endswith(".seed")]
    assert len(seeds) == len(set(seeds)) == len(deltas(model))
    before = deltas(model)[0][1].update_matrix("default")
    layer = deltas(model)[0][1]
    other = copy.deepcopy(layer)
    other.update_layer("default", 2, 4.0, model.peft_config["default"], "another.name")
    assert other.delta("default").seed != layer.delta("default").seed
    other.delta("default").load_state_dict(layer.delta("default").state_dict())
    assert torch.equal(other.update_matrix("default"), before)


def test_the_same_seed_gives_the_same_signs_and_another_one_others():
    first, second, third = (adapted(phi="linear", carrier_seed=seed) for seed in (0, 0, 1))
    for (_, _, _, a), (_, _, _, b), (_, _, _, c) in zip(deltas(first), deltas(second), deltas(third), strict=True):
        assert a.seed == b.seed != c.seed


def test_rows_of_a_batch_with_other_adapters():
    model = adapted(phi="linear", carrier_start="open")
    model.add_adapter("plain", LRLoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    disturb(model, "plain")
    model.eval()
    ids = token_ids(3)
    with torch.no_grad():
        together = model(ids, adapter_names=["default", "plain", "__base__"]).logits
        for row, name in enumerate(("default", "plain")):
            model.set_adapter(name)
            torch.testing.assert_close(together[row], model(ids).logits[row], rtol=1e-4, atol=1e-5)


def test_every_expert_has_signs_of_its_own(tmp_path):
    config = LRLoraConfig(
        r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"], phi="linear",
        carrier_start="open", **SIGNS,
    )  # fmt: skip
    model = get_peft_model(mixtral(), config).eval()
    disturb(model)
    found = [(layer, d) for _, layer, _, d in deltas(model) if d.A.ndim == 3]
    assert found
    for layer, delta in found:
        made = layer.update_matrix("default")
        for e in range(len(delta.A)):
            sigma = signs(delta.carrier.of_expert(e), *made.shape[1:])
            plain = layer.scaling["default"] * delta.B[e] @ delta.A[e]
            m, g = delta.c[e]
            torch.testing.assert_close(made[e], (m + g * sigma) * plain, rtol=1e-4, atol=1e-7)
    ids = token_ids()
    expected = model(ids).logits
    expected.sum().backward()
    assert all(delta.theta.grad.any() for _, delta in found)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(mixtral(), tmp_path).eval()
    torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=0)
    assert {row.gate is not None for row in lrlora.layer_ranks(model)} == {True}


def test_the_gate_is_measured_and_its_warnings_know_it():
    model = adapted(phi="linear", carrier_start="half")
    for row, (_, _, _, delta) in zip(lrlora.layer_ranks(model), deltas(model), strict=True):
        m, g = slopes(delta.c, 0.5, "linear")
        assert row.gate == pytest.approx((g * g / (m * m + g * g)).item(), abs=1e-6)
        assert row.stable_rank > row.stable_rank_ba
        assert row.outside_grid is None and row.rms_over_tau == 0
    assert lrlora.ranks.measure.rank_warnings(lrlora.layer_ranks(model), "linear") == []
    for start, is_line in (("open", False), ("closed", True)):
        model = adapted(tau=50.0, carrier_start=start)
        for *_, delta in deltas(model):
            delta.theta.data.zero_()
        said = " ".join(lrlora.ranks.measure.rank_warnings(lrlora.layer_ranks(model), "sinc"))
        assert ("straight line" in said) == is_line


@pytest.mark.parametrize("phi", FORMS)
def test_a_closed_start_trains_as_lora_at_first(phi):
    # the first gradient of B is that of plain LoRA with any signs
    ids = token_ids()
    gradients = []
    for fields in ({}, {"carrier": "signs", "carrier_start": "closed"}):
        torch.manual_seed(0)
        model = get_peft_model(tiny_llama(), LRLoraConfig(r=2, target_modules="all-linear", phi=phi, **fields))
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([delta.B.grad for *_, delta in deltas(model)])
    for plain, carried in zip(*gradients, strict=True):
        torch.testing.assert_close(carried, plain, rtol=1e-4, atol=1e-7)


def test_the_gate_starts_open_unless_asked_otherwise():
    model = get_peft_model(tiny_llama(), LRLoraConfig(r=2, target_modules="all-linear", carrier="signs"))
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    for *_, delta in deltas(model):
        assert delta.c is not None and delta.carrier is not None
        m, g = slopes(delta.c, delta.carrier.offset, delta.phi)
        torch.testing.assert_close(torch.stack([m, g]), torch.tensor([0.0, 1.0]), rtol=0, atol=1e-5)
        assert delta.B.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"phi": "sine"}, "no coefficients that could learn a gate"),
        ({"carrier_offset": 0}, "carrier_offset must be a finite number above 0"),
        ({"carrier_start": "ajar"}, "carrier_start must be one of"),
        ({"carrier_seed": -1}, "carrier_seed must be a whole number"),
        ({"carrier": "waves"}, "carrier must be one of"),
        ({"tau": "auto", "carrier_start": "open"}, "pass 'closed', or a number for tau"),
        ({"phi": "linear", "tau": "auto"}, "leave tau out"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields, text):
    with pytest.raises(InputError, match=text):
        LRLoraConfig(**{**SIGNS, **fields})


def test_without_a_carrier_linear_is_lora_with_a_learned_scale():
    model = get_peft_model(tiny_bert(), LRLoraConfig(r=2, target_modules=["query"], phi="linear", task_type="SEQ_CLS"))
    disturb(model)
    for _, layer, _, delta in deltas(model):
        assert delta.c.shape == (1,) and delta.c != 1
        expected = layer.scaling["default"] * delta.c * (delta.B @ delta.A)
        torch.testing.assert_close(layer.update_matrix("default"), expected)
    assert all(row.gate is None for row in lrlora.layer_ranks(model))
