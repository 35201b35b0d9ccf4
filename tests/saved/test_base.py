"""How a base is loaded: what is refused beforehand, which version of a hub model, and whose code runs."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from transformers import AutoTokenizer

from lrlora import InputError
from lrlora.cli import main
from lrlora.saved.adapter import read_adapter
from lrlora.saved.base import BaseOptions
from lrlora.saved.identity import digest_of_model
from lrlora.saved.load import load_adapter, load_base
from lrlora.training import TrainConfig
from tests.cli.commands import match, quick, run
from tests.training.bases import QUIET, decoder, sums

pytestmark = QUIET

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"dtype": "bf16"}, "dtype must be one of auto, float32, bfloat16, float16, got 'bf16'"),
        ({"quantization": "nf4"}, "quantization must be one of none, bnb-4bit, bnb-8bit, torchao-int8, got 'nf4'"),
        ({"revision": "v1"}, "the embedded encoder is a folder on this machine; leave --revision out"),
        ({"revision": "v1", "model": "embedded-decoder"}, "embedded-decoder is a folder on this machine"),
        ({"revision": "v1", "model": "./here"}, r"\./here is a folder on this machine"),
    ],
)
def test_what_cannot_work_is_refused_beforehand(fields, word):
    with pytest.raises(InputError, match=word):
        TrainConfig(**fields)


@pytest.mark.parametrize(("name", "package"), [("bnb-8bit", "bitsandbytes"), ("torchao-int8", "torchao")])
def test_a_package_that_is_missing_is_named(monkeypatch, name, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == package else object())
    with pytest.raises(InputError, match=rf"{name} needs the package {package}, which is not installed: pip install"):
        TrainConfig(quantization=name)


def test_a_base_that_is_quantised_already_is_not_quantised_again(embedded_encoder, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    folder = decoder(tmp_path / "base", embedded_encoder)
    load_base(str(folder), "CAUSAL_LM", None, BaseOptions(quantization="bnb-4bit")).save_pretrained(tmp_path / "packed")
    with pytest.raises(InputError, match="its files are quantised already; leave --quantization out"):
        load_base(str(tmp_path / "packed"), "CAUSAL_LM", None, BaseOptions(quantization="bnb-8bit"))


def test_code_of_the_base_runs_only_where_the_user_said_so(embedded_encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = decoder(tmp_path / "base", embedded_encoder)
    (base / "modeling_own.py").write_text(CODE)
    described = json.loads((base / "config.json").read_text())
    described.update(model_type="own-llama", architectures=["OwnForCausalLM"])
    described["auto_map"] = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    (base / "config.json").write_text(json.dumps(described))
    rows, folder = sums(tmp_path / "rows.jsonl"), tmp_path / "run"
    status, _, err = run(capsys, *quick(base, rows, folder))
    assert status == 2
    match(r"comes with Python code of its own, .*pass --trust_remote_code to run it here .*code of strangers", err)
    assert not (tmp_path / "modules").exists()

    status, _, err = run(capsys, *quick(base, rows, folder, "--trust_remote_code", "True"))
    assert status == 0, err
    assert type(load_adapter(str(folder)).get_base_model()).__name__ == "OwnForCausalLM"
    measured = json.loads((folder / "metrics.json").read_text())["loss"]
    status, out, err = run(capsys, "evaluate", str(folder), "--models", "adapter", "exported", "--json")
    assert status == 0, err
    assert json.loads(out)["results"]["adapter"]["loss"] == measured
    assert main(["export", str(folder), "--out", str(tmp_path / "lora")]) == 0

    # a folder of others says nothing of whose code may run
    alone = tmp_path / "alone"
    shutil.copytree(folder / "adapter", alone)
    (alone / "base.json").write_text('{"trust_remote_code": true}')
    with pytest.raises(InputError, match="comes with Python code of its own"):
        load_adapter(str(alone))
    assert load_adapter(str(alone), options=BaseOptions(trust_remote_code=True))
    other = decoder(tmp_path / "other", embedded_encoder)
    assert not read_adapter(str(folder), str(other)).options.trust_remote_code


# PEFT, offline, about a base that is in the hub's cache alone
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_a_revision_is_trained_on_and_loaded_again(embedded_encoder, tmp_path, capsys, monkeypatch):
    cache = tmp_path / "hub" / "models--some--model"
    for number, tag in enumerate(("main", "v1")):
        decoder(cache / "snapshots" / (str(number) * 40), embedded_encoder, seed=number)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / tag).write_text(str(number) * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    rows, folder = sums(tmp_path / "rows.jsonl"), tmp_path / "run"
    status, _, err = run(capsys, *quick("some/model", rows, folder, "--revision", "v1"))
    assert status == 0, err
    assert json.loads((folder / "config.json").read_text())["inputs"]["model"] == f"some/model@{'1' * 40}"
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["revision"] == "v1"
    assert digest_of_model("some/model") == f"some/model@{'0' * 40}"

    expected = load_base(str(cache / "snapshots" / ("1" * 40)), "CAUSAL_LM").get_input_embeddings().weight
    for adapter in (folder, tmp_path / "alone"):
        if adapter != folder:
            shutil.copytree(folder / "adapter", adapter)
        assert torch.equal(load_adapter(str(adapter)).get_input_embeddings().weight, expected)
    measured = json.loads((folder / "metrics.json").read_text())["loss"]
    status, out, err = run(capsys, "evaluate", str(folder), "--json")
    assert status == 0, err
    assert json.loads(out)["results"]["adapter"]["loss"] == measured
    assert main(["merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
    merged = load_base(str(tmp_path / "merged"), "CAUSAL_LM").get_input_embeddings().weight
    assert torch.equal(merged, expected)
    assert main(["export", str(folder), "--out", str(tmp_path / "lora")]) == 0
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["revision"] == "v1"
    assert AutoTokenizer.from_pretrained("some/model", revision="v1")
    # the same command with another revision is another run
    assert run(capsys, *quick("some/model", rows, folder))[0] == 2
