"""TrainConfig: the adapter's config inside it, and every setting by one flat name."""

import dataclasses

import peft
import pytest

from lrlora import InputError, LRLoraConfig
from lrlora.training import TrainConfig
from lrlora.training.config import setting_fields


def test_the_adapter_is_an_lrlora_config():
    config = TrainConfig(adapter=LRLoraConfig(r=4, target_modules=["query"], rank_pattern={"query": 2}))
    made = config.adapter_config("SEQ_CLS")
    assert isinstance(made, LRLoraConfig)
    assert (made.r, made.rank_pattern, made.task_type) == (4, {"query": 2}, "SEQ_CLS")
    assert config == TrainConfig.of(r=4, target_modules=["query"], rank_pattern={"query": 2})


def test_every_setting_has_one_name_and_help():
    fields = setting_fields()
    names = [field.name for field in fields]
    assert len(names) == len(set(names))
    assert all(field.metadata["help"] for field in fields)
    of_peft = {field.name for field in dataclasses.fields(peft.PeftConfig)}
    left_out = {"config_version", "init_lora_weights", "fan_in_fan_out"}
    assert {field.name for field in dataclasses.fields(LRLoraConfig)} - of_peft - left_out <= set(names)
    assert set(TrainConfig().settings().values) == set(names)


def test_settings_change_by_their_flat_names():
    config = TrainConfig.of(r=4, lora_alpha=4.0, max_steps=3)
    changed = config.with_settings(r=2, seed=5)
    assert (changed.adapter.r, changed.adapter.lora_alpha, changed.max_steps, changed.seed) == (2, 4.0, 3, 5)
    assert config.adapter.r == 4
    with pytest.raises(InputError, match="no such setting: lora_alfa; did you mean lora_alpha"):
        config.with_settings(lora_alfa=3)
    with pytest.raises(InputError, match="r must be a whole number of at least 1, got 0"):
        config.with_settings(r=0)


def test_plain_lora_has_the_rank_scale_and_placement_of_the_adapter():
    settings = {
        "r": 4, "rank_pattern": {"query": 8}, "alpha_pattern": {"key": 3.0}, "bias": "lrlora_only",
        "target_modules": ["query", "key"], "init_weights": "gaussian", "layers_to_transform": [1], "use_rslora": True,
        "modules_to_save": ["pooler"], "lora_dropout": 0.25, "tau": 0.5, "phi": "residual",
    }  # fmt: skip
    ours = TrainConfig.of(**settings).adapter
    lora = TrainConfig.of(method="lora", **settings).adapter_config("SEQ_CLS")
    assert isinstance(lora, peft.LoraConfig) and lora.task_type == "SEQ_CLS"
    for name in ("r", "rank_pattern", "lora_dropout", "use_rslora", "target_modules", "layers_to_transform"):
        assert getattr(lora, name) == getattr(ours, name), name
    assert (lora.lora_alpha, lora.alpha_pattern) == (8.0, {"query": 16.0, "key": 3.0})
    assert (lora.bias, lora.init_lora_weights, lora.modules_to_save) == ("lora_only", "gaussian", ["pooler"])
    again = LRLoraConfig.from_lora(lora, tau=0.5, phi="residual")
    kept = dataclasses.replace(again, lora_alpha=None, alpha_pattern={"key": 3.0}, task_type=None)
    assert kept == ours
