"""What cannot be merged is refused in one line, before anything is written."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers

import lrlora
from lrlora import InputError
from lrlora.cli import main
from lrlora.export import merge
from tests.conftest import disturb, tiny_llama
from tests.export.cases import Case, make


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {"llama": make("llama", tmp_path_factory.mktemp("cases"))}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_tied_weight_is_refused_by_name(tmp_path):
    config = tiny_llama().config
    config.tie_word_embeddings = True
    base = transformers.LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    for number, fields in enumerate(({"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]})):
        fields = {"target_modules": ["q_proj"], **fields}
        model = peft.get_peft_model(
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
            lrlora.LRLoraConfig(r=2, task_type="CAUSAL_LM", **fields),
        )
        disturb(model)
        model.save_pretrained(tmp_path / f"adapter{number}", save_embedding_layers=False)
        with pytest.raises(InputError, match=r"embed_tokens.*lm_head"):
            merge(str(tmp_path / f"adapter{number}"), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def _other_method(case: Case, folder: Path) -> list[str]:
    model = transformers.AutoModelForCausalLM.from_pretrained(case.base)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(
        folder / "lora"
    )
    return [str(folder / "lora")]


def _other_shapes(case: Case, folder: Path) -> list[str]:
    config = tiny_llama().config
    config.hidden_size, config.intermediate_size = 64, 96
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "wide")
    return [str(case.adapter), "--model", str(folder / "wide")]


def _pickled(case: Case, folder: Path) -> list[str]:
    (folder / "pickled").mkdir()
    shutil.copy(case.base / "config.json", folder / "pickled")
    torch.save({}, folder / "pickled" / "pytorch_model.bin")
    return [str(case.adapter), "--model", str(folder / "pickled")]


def _gguf(case: Case, folder: Path) -> list[str]:
    (folder / "gguf").mkdir()
    shutil.copy(case.base / "config.json", folder / "gguf")
    (folder / "gguf" / "model.Q4_1.gguf").touch()
    return [str(case.adapter), "--model", str(folder / "gguf")]


def _quantised(case: Case, folder: Path) -> list[str]:
    shutil.copytree(case.base, folder / "quantised")
    config = json.loads((case.base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "quantised" / "config.json").write_text(json.dumps(config))
    return [str(case.adapter), "--model", str(folder / "quantised")]


def _lost_shard(case: Case, folder: Path) -> list[str]:
    shutil.copytree(case.base, folder / "lost")
    next((folder / "lost").glob("model-00002*")).unlink()
    return [str(case.adapter), "--model", str(folder / "lost")]


def _filled(case: Case, folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "mine").touch()
    return [str(case.adapter)]


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (_other_method, "is an adapter of type LORA, not LRLORA"),
        (_other_shapes, "does not fit this base model"),
        (_pickled, "only pickled weights (pytorch_model.bin), which lrlora does not read"),
        (_gguf, "only quantised GGUF weights (model.Q4_1.gguf)"),
        (_quantised, "is quantised (bitsandbytes)"),
        (_lost_shard, "which its index names"),
        (_filled, "is there already and is not empty"),
        (lambda case, _: [str(case.adapter), "--model", "./missing"], "./missing"),
        (lambda case, _: [str(case.adapter), "--model", "no-such/model"], "no-such/model"),
        (lambda case, _: [str(case.adapter), "--dtype", "int8"], "dtype must be one of"),
        (lambda case, folder: [str(folder)], "no adapter in"),
    ],
)
def test_what_cannot_be_merged_is_one_line_and_status_2(cases, tmp_path, capsys, given, word):
    arguments = given(cases["llama"], tmp_path)
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    assert main(["merge", *arguments, "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1), err
    assert err.startswith("lrlora: ") and word in err
    assert sorted(tmp_path.rglob("*")) == before
