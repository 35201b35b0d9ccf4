"""Names of fields under a key of another tool, and adapters of another method."""

import importlib

import peft
import pytest
from transformers import AutoModelForCausalLM

import lrlora
from lrlora.integrations.fields import check_names, config_of_loaded, fields_without
from tests.conftest import tiny_llama
from tests.integrations.cases import is_installed


def test_the_fields_are_those_of_the_config_without_what_a_tool_has_itself():
    own = fields_without(["r", "bias"])
    assert own.keys() >= {"tau", "phi", "carrier", "target_modules", "lora_alpha"}
    assert not own.keys() & {"r", "bias", "config_version", "init_lora_weights", "peft_type", "task_type"}


def test_a_name_that_is_no_field_is_refused_with_what_is_meant():
    own = ["tau", "phi"]
    check_names(["phi", "tau"], own, {"r": "--rank"}, "here")
    with pytest.raises(lrlora.InputError, match=r"here has no taus; did you mean tau\?"):
        check_names(["phi", "taus"], own, {"r": "--rank"}, "here")
    with pytest.raises(lrlora.InputError, match="here has no r; the setting for it is --rank"):
        check_names(["r"], own, {"r": "--rank"}, "here")


@pytest.mark.parametrize("config", [peft.LoraConfig, lrlora.LRLoraConfig])
def test_an_adapter_of_another_method_is_refused(tmp_path, config):
    tiny_llama().save_pretrained(tmp_path / "base")
    peft.get_peft_model(tiny_llama(), config(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    if config is lrlora.LRLoraConfig:
        assert config_of_loaded(model, "adapter").r == 2
        return
    with pytest.raises(lrlora.InputError, match="adapter holds an adapter of the method LORA"):
        config_of_loaded(model, "adapter")


@pytest.mark.parametrize(
    ("tool", "module"),
    [
        ("axolotl", "axolotl"),
        ("ms-swift", "ms_swift"),
        ("llamafactory", "llamafactory"),
        ("llamafactory", "llamafactory_v1"),
    ],
)
def test_without_the_tool_the_error_says_what_to_install(tool, module):
    if is_installed(tool):
        pytest.skip(f"{tool} is installed here")
    with pytest.raises(lrlora.InputError, match=f"pip install {tool}"):
        importlib.import_module(f"lrlora.integrations.{module}")
