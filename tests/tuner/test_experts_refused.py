"""Adapters on the weights of experts that cannot work are refused by name."""

import pytest
from peft import get_peft_model
from torch import nn

from lrlora import InputError, LRLoraConfig
from tests.conftest import tiny_llama, token_ids
from tests.tuner.experts import BOTH, adapted, mixtral


class TestRefused:
    """What cannot work is said by name."""

    def test_dropout(self):
        with pytest.raises(InputError, match=r"lora_dropout acts on the input .* gate_up_proj .* pass 0"):
            adapted(lora_dropout=0.1, target_parameters=["experts.gate_up_proj"])

    def test_a_parameter_of_another_shape(self):
        with pytest.raises(InputError, match=r"layers.0.input_layernorm.weight: its shape is \(16,\), needed"):
            adapted(target_parameters=["input_layernorm.weight"])

    def test_a_parametrized_one(self):
        model = mixtral()
        experts = model.model.layers[0].mlp.experts
        nn.utils.parametrize.register_parametrization(experts, "down_proj", nn.Identity())
        with pytest.raises(InputError, match=r"cannot adapt the parameter .*down_proj: it is computed by a parametr"):
            get_peft_model(
                model, LRLoraConfig(target_modules=[], target_parameters=["model.layers.0.mlp.experts.down_proj"])
            )

    def test_other_parameters_in_a_second_adapter(self):
        model = adapted()
        with pytest.raises(InputError, match="all adapters must target the same set of parameters"):
            model.add_adapter("other", LRLoraConfig(target_modules=[], target_parameters=BOTH[:1]))
        assert list(model.peft_config) == ["default"]

    def test_another_adapter_for_every_row(self):
        model = adapted()
        with pytest.raises(InputError, match="does not support mixed adapter batches"):
            model(token_ids(), adapter_names=["default", "__base__"])

    def test_a_module_that_is_adapted_already(self):
        with pytest.raises(ValueError, match="not a valid target"):
            get_peft_model(tiny_llama(), LRLoraConfig(target_modules=["q_proj"], target_parameters=["q_proj.weight"]))
