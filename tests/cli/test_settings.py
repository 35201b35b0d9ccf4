"""Settings as flags and as a file: both ways, every type, and what is wrong named."""

import dataclasses
import json
from typing import Literal

import pytest
from safetensors.torch import load_file

from lrlora.cli import main
from lrlora.cli.flags import parse
from lrlora.cli.settings import flags_of, values_of, words_of_file
from lrlora.errors import InputError
from lrlora.training import TrainConfig
from lrlora.training.config import setting_fields
from lrlora.training.fields import typed_fields

OTHER = {
    "r": 3, "lora_alpha": 7.5, "use_rslora": True, "target_modules": ["key", "query"], "exclude_modules": [".*0.*"],
    "target_parameters": ["experts.up"], "bias": "all", "layers_to_transform": [0, 2], "layers_pattern": ["layer"],
    "rank_pattern": {"query": 5}, "alpha_pattern": {"a b": 2.5}, "trainable_token_indices": {"embed": [5, 7]},
    "init_weights": "gaussian", "phi": "residual", "tau": 0.125, "share": "type", "carrier_seed": 4,
    "learning_rate": 1e-4, "report_to": ["none"], "max_length": 64, "text_columns": ["b", "a"],
}  # fmt: skip


def parsed(*words: str) -> dict:
    """The settings that some flags stand for."""
    fields = setting_fields()
    return values_of(parse(flags_of("Flags", fields, ()), "train", list(words), "an example"), fields)


def test_without_flags_the_settings_are_the_defaults():
    assert TrainConfig.of(**parsed()).settings() == TrainConfig().settings()
    assert TrainConfig().adapter.target_modules == "all-linear"


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_a_file_of_settings_gives_these_settings(tmp_path, kind):
    file = tmp_path / f"settings.{kind}"
    if kind == "json":
        file.write_text(json.dumps(OTHER))
    else:
        file.write_text("\n".join(f"{name}: {json.dumps(value)}" for name, value in OTHER.items()))
    config = TrainConfig.of(**parsed(*words_of_file(str(file), setting_fields())))
    assert config == TrainConfig.of(**OTHER)
    assert {name: config.settings().values[name] for name in OTHER} == OTHER


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--tau", "auto"], "tau", "auto"),
        (["--tau", "0.5"], "tau", 0.5),
        (["--init_weights", "False"], "init_weights", False),
        (["--init-weights", "gaussian"], "init_weights", "gaussian"),
        (["--rank_pattern", '{"q": 2}'], "rank_pattern", {"q": 2}),
        (["--trainable_token_indices", "[5, 7]"], "trainable_token_indices", [5, 7]),
        (["--layers_to_transform", "1", "3"], "layers_to_transform", [1, 3]),
        (["--use_rslora"], "use_rslora", True),
        (["--compare", "no"], "compare", False),
    ],
)
def test_a_flag_is_read_as_its_setting_is(words, name, value):
    assert parsed(*words)[name] == value


def test_types_that_a_flag_has_to_tell_apart():
    @dataclasses.dataclass
    class Settings:
        either: int | str = dataclasses.field(default=3, metadata={"help": "one of two types"})
        maybe: float | None = dataclasses.field(default=None, metadata={"help": "none or a number"})
        named: Literal["a", "b"] = dataclasses.field(default="a", metadata={"help": "one of two words"})

    fields = typed_fields(Settings)
    made = flags_of("Flags", fields, ())
    assert values_of(parse(made, "train", [], ""), fields) == {"either": 3, "maybe": None, "named": "a"}
    chosen = parse(made, "train", ["--either", "x", "--maybe", "2", "--named", "b"], "")
    assert values_of(chosen, fields) == {"either": "x", "maybe": 2.0, "named": "b"}
    with pytest.raises(InputError, match="invalid choice: 'c'"):
        parse(made, "train", ["--named", "c"], "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rr: 3", "no such setting: rr; did you mean r?"),
        ("zzzz: 3", "no such setting: zzzz"),
        ("r: null", "r has no value; leave it out for its default, 8"),
        ("r: x", "argument --r: invalid int value: 'x'"),
        ("r: 1.5", "argument --r: invalid int value: '1.5'"),
        ("tau: foo", "tau must be a number above 0, in units of 1/sqrt(in), or 'auto', got 'foo'"),
        ("rank_pattern: 3", "rank_pattern must be a dictionary such as {'q_proj': 16}, got 3"),
        (
            "trainable_token_indices: x",
            "trainable_token_indices must be a list of numbers, or lists by module, got 'x'",
        ),
        ("layers_to_transform: [a]", "invalid int value: 'a'"),
        ("[1, 2]", "needs settings by name, such as 'r: 4', got list"),
        ("a: [", "is neither YAML nor JSON"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, capsys, text, said):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert main(["train", "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["train", "--config", str(tmp_path / "nowhere.yaml")]) == 2
    assert "nowhere.yaml: No such file" in capsys.readouterr().err


def test_a_run_is_repeated_from_its_own_folder(tiny_encoder, sentences, tmp_path, capsys):
    where = ["--model", str(tiny_encoder), "--data", str(sentences)]
    flags = ["--max_steps", "3", "--r", "2", "--rank_pattern", '{"query": 3}', "--tau", "auto", "--overwrite"]
    assert main(["train", *where, *flags, "--out", str(tmp_path / "first")]) == 0
    before = (tmp_path / "first" / "metrics.json").read_bytes()
    capsys.readouterr()
    for told in ("first", "first/config.json"):
        assert main(["train", "--config", str(tmp_path / told)]) == 2
        assert "is a run: pass --out, the folder of the one that repeats it" in capsys.readouterr().err
        # --overwrite is not repeated: a folder that holds another run stays
        assert main(["train", "--config", str(tmp_path / told), "--out", str(tmp_path / "first"), "--r", "4"]) == 2
        assert "holds a run with other settings (r 2 -> 4)" in capsys.readouterr().err
    assert (tmp_path / "first" / "metrics.json").read_bytes() == before
    assert main(["train", "--config", str(tmp_path / "first"), "--out", str(tmp_path / "again")]) == 0
    first, again = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("first", "again"))
    assert first.keys() == again.keys() and all(first[name].equal(again[name]) for name in first)
