import pytest

from lrlora import InputError, LRLoraConfig


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
        ("bias", "lora_only", "bias must be one of"),
        ("init_weights", "pissa", "init_weights"),
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
    assert read.config_version == 1
