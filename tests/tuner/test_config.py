import dataclasses
import inspect
import json

import peft
import pytest

from lrlora import InputError, LRLoraConfig
from lrlora.tuner.lora_fields import NOT_HERE


def test_defaults():
    config = LRLoraConfig()
    assert (config.phi, config.num_basis, config.tau, config.share) == ("sinc", 11, 0.05, "matrix")
    assert config.alpha_of(8) == 16
    assert config.scale_of(8, 16) == 2
    assert LRLoraConfig(use_rslora=True).scale_of(16, 32) == 8


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("r", 0, "r must be a whole number of at least 1, got 0"),
        ("r", -3, "got -3"),
        ("r", 2.5, "got 2.5"),
        ("r", True, "got True"),
        ("lora_alpha", 0, "lora_alpha"),
        ("lora_alpha", float("nan"), "lora_alpha"),
        ("lora_dropout", 1.0, "lora_dropout"),
        ("lora_dropout", -0.1, "lora_dropout"),
        ("num_basis", 10, "num_basis must be odd .* pass num_basis=11"),
        ("num_basis", 1, "num_basis"),
        ("tau", 0, "tau"),
        ("tau", -0.1, "tau"),
        ("tau", float("inf"), "tau"),
        ("tau", "often", "'auto', got 'often'"),
        ("kappa", 0, "kappa"),
        ("tau_warmup_steps", -1, "tau_warmup_steps"),
        ("tau_follow", 1.5, "tau_follow"),
        ("omega", -200, "omega"),
        ("phi", "gelu", "phi must be one of 'sinc'"),
        ("share", "nobody", "share must be one of"),
        ("bias", "some", "bias must be one of"),
        ("init_weights", "pissa", "init_weights"),
        ("init_lora_weights", "pissa", "init_weights must be True, False or 'gaussian', got 'pissa'"),
        ("use_dora", True, "LRLoraConfig has no use_dora, got True: .* leave it out, or train peft.LoraConfig"),
        ("layer_replication", [(0, 2)], "LRLoraConfig has no layer_replication"),
        ("lora_bias", True, "LRLoraConfig has no lora_bias"),
        ("use_qalora", True, "LRLoraConfig has no use_qalora"),
        ("ensure_weight_tying", True, "load the base with tie_word_embeddings=False"),
        ("alora_invocation_tokens", [1], "LRLoraConfig has no alora_invocation_tokens"),
        ("rank_pattern", {"query": 0}, "rank_pattern"),
        ("alpha_pattern", {"query": -1}, "alpha_pattern"),
        ("layers_pattern", "layers", "layers_pattern needs layers_to_transform"),
        ("config_version", 99, "upgrade"),
    ],
)
def test_a_field_outside_its_range_is_named(field, value, word):
    with pytest.raises(InputError, match=word):
        LRLoraConfig(**{field: value})


def test_auto_tau_needs_a_knee():
    with pytest.raises(InputError, match="set omega instead"):
        LRLoraConfig(tau="auto", phi="sine")


def test_blocks_cannot_be_picked_from_a_regular_expression():
    with pytest.raises(InputError, match="layers_to_transform needs target_modules as a list"):
        LRLoraConfig(target_modules=".*query", layers_to_transform=[0])


def test_saved_and_read_again(tmp_path):
    from peft import PeftConfig

    config = LRLoraConfig(r=4, phi="residual", tau="auto", share="block", target_modules=["query"])
    config.save_pretrained(tmp_path)
    read = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(read, LRLoraConfig)
    assert read.to_dict() == config.to_dict()
    assert read.config_version == 2


def test_it_takes_the_names_of_lora_config():
    config = LRLoraConfig(fan_in_fan_out=True, init_lora_weights="gaussian", bias="lora_only", use_dora=False)
    assert (config.init_weights, config.init_lora_weights, config.bias) == ("gaussian", None, "lrlora_only")
    assert LRLoraConfig(init_weights=False, init_lora_weights=False).init_weights is False
    with pytest.raises(InputError, match="two names for one field, got 'gaussian' and False"):
        LRLoraConfig(init_weights="gaussian", init_lora_weights=False)
    with pytest.raises(TypeError, match="unexpected keyword argument 'rankk'"):
        LRLoraConfig(rankk=3)


def test_every_field_of_lora_config_is_here_or_named_as_not_here():
    ours = set(inspect.signature(LRLoraConfig).parameters)
    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} - ours == set(NOT_HERE)


def test_from_lora_keeps_what_a_lora_config_says():
    lora = peft.LoraConfig(
        r=4,
        lora_alpha=12,
        lora_dropout=0.1,
        target_modules=["query", "value"],
        exclude_modules=["x"],
        modules_to_save=["classifier"],
        bias="lora_only",
        rank_pattern={"query": 2},
        alpha_pattern={"query": 5},
        use_rslora=True,
        task_type="SEQ_CLS",
        init_lora_weights=False,
        layers_to_transform=[0],
        layers_pattern="layer",
    )
    config = LRLoraConfig.from_lora(lora, tau=0.1)
    for name in ("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save", "task_type",
                 "rank_pattern", "alpha_pattern", "use_rslora", "layers_to_transform", "layers_pattern"):  # fmt: skip
        assert getattr(config, name) == getattr(lora, name), name
    assert (config.bias, config.init_weights, config.tau) == ("lrlora_only", False, 0.1)
    # the scale of the default is LoraConfig's, not ours
    assert LRLoraConfig.from_lora(peft.LoraConfig()).lora_alpha == 8
    assert LRLoraConfig.from_lora(peft.LoraConfig(target_modules="all-linear")).target_modules == "all-linear"


def test_from_lora_refuses_what_would_be_lost():
    with pytest.raises(InputError, match="LRLoraConfig has no use_dora"):
        LRLoraConfig.from_lora(peft.LoraConfig(use_dora=True))
    with pytest.raises(InputError, match="init_weights must be True, False or 'gaussian', got 'olora'"):
        LRLoraConfig.from_lora(peft.LoraConfig(init_lora_weights="olora"))
    with pytest.raises(InputError, match=r"takes a peft.LoraConfig, got LoHaConfig"):
        LRLoraConfig.from_lora(peft.LoHaConfig())


def test_a_config_without_the_newer_fields_is_read(tmp_path):
    LRLoraConfig(r=4, target_modules=["query"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    for name in ("fan_in_fan_out", "init_lora_weights", "trainable_token_indices"):
        del saved[name]
    file.write_text(json.dumps(saved))
    assert peft.PeftConfig.from_pretrained(tmp_path).to_dict() == LRLoraConfig(r=4, target_modules=["query"]).to_dict()


def test_names_of_modules_are_written_in_order(tmp_path):
    names = [f"module_{number}" for number in range(40)]
    LRLoraConfig(target_modules=names, exclude_modules=names[::-1]).save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == written["exclude_modules"] == sorted(names)
    assert LRLoraConfig.from_pretrained(str(tmp_path)).target_modules == set(names)
