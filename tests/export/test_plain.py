"""Adapters of PEFT's own LoRA, exported at other ranks."""

import json

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from lrlora import InputError
from lrlora.cli import main
from lrlora.export import RankChoice, export_lora
from tests.conftest import disturb
from tests.export.cases import BUILDERS, Case, without_lrlora


def lora_case(name: str, folder, **config) -> Case:
    """A base on disk and a LoRA on it that changes every layer, its biases and its head."""
    _, saved, loader, options, inputs, fields = BUILDERS[name]()
    base_folder, adapter = folder / f"{name}-base", folder / f"{name}-adapter"
    saved.save_pretrained(base_folder)
    base = getattr(transformers, loader).from_pretrained(base_folder, dtype=torch.float32, **options)
    fields = {"r": 3, "lora_alpha": 5, "fan_in_fan_out": name == "gpt2", **fields, **config}
    model = peft.get_peft_model(base, peft.LoraConfig(**fields)).eval()
    disturb(model)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1 * torch.randn_like(parameter))
        logits = model(**inputs).logits
    model.save_pretrained(adapter)
    config_file = adapter / "adapter_config.json"
    settings = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**settings, "base_model_name_or_path": str(base_folder)}))
    return Case(name, base_folder, adapter, loader, options, model, inputs, logits)


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_all_of_a_lora_is_the_same_lora_to_peft_alone(tmp_path, config):
    cases = [lora_case(name, tmp_path, **config) for name in ("bert", "llama", "gpt2", "vit")]
    exported = []
    for case in cases:
        made = export_lora(str(case.adapter), tmp_path / case.name, RankChoice(energy=1.0))
        assert {row.rank for row in made.layers} == {3}
        assert made.relative_error < 1e-6
        exported.append((case, case.base, tmp_path / case.name))
    found = without_lrlora(tmp_path, exported)
    for case in cases:
        torch.testing.assert_close(found[case.name], case.logits, rtol=1e-5, atol=1e-5)


def test_a_cut_lora_is_the_best_of_its_rank(tmp_path):
    case = lora_case("llama", tmp_path)
    made = export_lora(str(case.adapter), tmp_path / "out", RankChoice(budget=2000))
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert made.parameters <= 2000 and made.parameters == sum(value.numel() for value in tensors.values())
    assert {1} < {row.rank for row in made.layers} <= {1, 2, 3}
    for row in made.layers:
        layer = case.model.get_submodule(f"base_model.model.{row.layer}")
        dW = layer.get_delta_weight("default").detach()
        A, B = (tensors[f"base_model.model.{row.layer}.lora_{which}.weight"] for which in "AB")
        optimum = (torch.linalg.svdvals(dW)[row.rank :] ** 2).sum().sqrt().item()
        assert (dW - B @ A).norm().item() == pytest.approx(optimum, rel=1e-3, abs=1e-5)
        assert row.relative_error == pytest.approx(optimum / dW.norm().item(), rel=1e-3, abs=1e-6)


# peft warns of every bias of lora_B that it is no matrix
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 2 LoRA tensor")
@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"use_dora": True}, "layers of DoraLinearVariant, a variant of LoRA, have no plain LoRA form here"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the weights of the base"),
        ({"lora_bias": True, "target_modules": ["query"], "bias": "none"}, "layers with lora_bias have no plain"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path, config, word):
    case = lora_case("bert", tmp_path, **config)
    with pytest.raises(InputError, match=word):
        export_lora(str(case.adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_broken_lora_is_refused_and_another_method_too(tmp_path, capsys):
    case = lora_case("llama", tmp_path)
    with torch.no_grad():
        case.model.get_submodule("base_model.model.model.layers.1.mlp.up_proj").lora_A["default"].weight[0, 0] = (
            torch.nan
        )
    case.model.save_pretrained(tmp_path / "broken")
    words = ["--model", str(case.base), "--out", str(tmp_path / "out")]
    assert main(["export", str(tmp_path / "broken"), *words]) == 2
    assert "the update of model.layers.1.mlp.up_proj holds NaN or inf" in capsys.readouterr().err
    base = transformers.AutoModelForCausalLM.from_pretrained(case.base)
    peft.get_peft_model(base, peft.IA3Config(task_type="CAUSAL_LM")).save_pretrained(tmp_path / "other")
    assert main(["export", str(tmp_path / "other"), *words]) == 2
    assert "is an adapter of type IA3, not LRLORA or LORA" in capsys.readouterr().err
