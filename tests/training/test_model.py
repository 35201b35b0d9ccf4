"""What a model was when it was measured is what is saved; names that match nothing are refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers
from transformers import AutoTokenizer, BertConfig, DistilBertConfig, GPT2Config, XLNetConfig

from lrlora import InputError, LRLoraConfig
from lrlora.cli import main
from lrlora.export.compare import compare, run_config, score_model
from lrlora.saved import load_adapter
from lrlora.saved.load import load_base
from lrlora.saved.tokens import pad_token_id, settle_padding
from lrlora.training import TrainConfig, train
from lrlora.training.model import put_on
from tests.conftest import tiny_bert, tiny_llama, write_rows

_SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
BASES: dict[str, Any] = {
    "bert of a masked language model": lambda v: transformers.BertForMaskedLM(BertConfig(vocab_size=v, **_SIZES)),
    "deberta": lambda v: transformers.DebertaV2Model(transformers.DebertaV2Config(vocab_size=v, **_SIZES)),
    "electra": lambda v: transformers.ElectraModel(
        transformers.ElectraConfig(vocab_size=v, embedding_size=32, **_SIZES)
    ),
    "distilbert": lambda v: transformers.DistilBertModel(
        DistilBertConfig(vocab_size=v, dim=32, hidden_dim=48, n_layers=2, n_heads=2)
    ),
    "xlnet": lambda v: _filled(
        transformers.XLNetModel(XLNetConfig(vocab_size=v, d_model=32, n_layer=2, n_head=2, d_inner=48))
    ),
}
SAVED = {
    "bert of a masked language model": "bert.pooler.dense",
    "deberta": "pooler.dense",
    "electra": "classifier",
    "distilbert": "pre_classifier",
    "xlnet": "sequence_summary.summary",
}


def _filled(model: Any) -> Any:
    # XLNet leaves some of its weights as the memory was
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def base_folder(make: Any, tokenizer_from: Path, folder: Path) -> Path:
    """A base made for the tokenizer of another."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    torch.manual_seed(1)
    make(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", BASES)
def test_layers_that_the_base_lacks_are_saved_with_the_adapter(name, tiny_encoder, sentences, tmp_path, capsys):
    base = base_folder(BASES[name], tiny_encoder, tmp_path / "base")
    for method in ("lrlora", "lora"):
        out = tmp_path / method
        config = TrainConfig.of(
            model=str(base), data=str(sentences), out=str(out), method=method, max_steps=6, batch_size=4, r=2,
            learning_rate=2e-2, max_length=16,
        )  # fmt: skip
        measured = train(config).metrics
        said = capsys.readouterr().err
        assert SAVED[name] in json.loads((out / "adapter" / "adapter_config.json").read_text())["modules_to_save"]
        assert ("trained and saved whole" in said and SAVED[name] in said) or SAVED[name] == "classifier"
        models = ("adapter", "merged", "exported") if method == "lrlora" else ("adapter",)
        for scores in compare(str(out), run_config(str(out)), models).results.values():
            assert scores["loss"] == pytest.approx(measured["loss"], abs=2e-3)
    assert main(["merge", str(tmp_path / "lrlora"), "--out", str(tmp_path / "merged")]) == 0
    merged = str(tmp_path / "merged")
    scores = score_model(merged, run_config(merged, data=str(sentences / "validation.jsonl"))).results["model"]
    expected = json.loads((tmp_path / "lrlora" / "metrics.json").read_text())
    assert scores["loss"] == pytest.approx(expected["loss"], abs=1e-3)


def test_an_adapter_without_the_random_layers_of_its_base_is_refused(tmp_path):
    base = tmp_path / "base"
    transformers.BertForMaskedLM(BertConfig(vocab_size=64, **_SIZES)).save_pretrained(base)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    for number, config in enumerate((LRLoraConfig, peft.LoraConfig)):
        model = peft.get_peft_model(loaded, config(r=2, target_modules=["query"], task_type="SEQ_CLS"))
        model.save_pretrained(tmp_path / f"adapter{number}")
        with pytest.raises(InputError, match=r"neither the base .* holds bert.pooler.dense.bias \(2 such tensors\)"):
            load_adapter(str(tmp_path / f"adapter{number}"))
        loaded = model.unload()
    assert main(["merge", str(tmp_path / "adapter0"), "--out", str(tmp_path / "out")]) == 2


def test_new_weights_that_no_adapter_can_save_are_refused(tiny_decoder, tmp_path):
    tiny_llama().model.save_pretrained(tmp_path / "bare")
    base = load_base(str(tmp_path / "bare"), "CAUSAL_LM")
    with pytest.raises(InputError, match=r"is no causal model: its files lack lm_head.weight"):
        put_on(base, LRLoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    base = load_base(str(tiny_decoder), "CAUSAL_LM")
    base.new_parameters = ["mask"]
    with pytest.raises(InputError, match=r"lack mask, which no module holds"):
        put_on(base, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))


def _numbers(**ids: Any) -> Any:
    fields = {"pad_token_id": None, "eos_token_id": None, "pad_token": None, **ids}

    class Tokens(SimpleNamespace):
        def __len__(self) -> int:
            return 64

        def convert_ids_to_tokens(self, number: int) -> str:
            return f"<{number}>"

    return Tokens(**fields)


@pytest.mark.parametrize(
    ("tokenizer", "config", "expected"),
    [
        ({"pad_token_id": 0, "eos_token_id": 2}, {"pad_token_id": 5}, 0),
        ({"eos_token_id": 2}, {"pad_token_id": 0}, 0),
        ({"eos_token_id": 0}, {"pad_token_id": None}, 0),
        ({}, {"eos_token_id": [9, 8]}, 9),
        ({}, {"eos_token_id": 0}, 0),
        ({"eos_token_id": 3}, {"pad_token_id": -1}, 3),
        ({"eos_token_id": 3}, {"pad_token_id": 1000}, 3),
    ],
)
def test_zero_is_a_token_to_pad_with(tokenizer, config, expected):
    tokens, config = _numbers(**tokenizer), SimpleNamespace(**config)
    assert pad_token_id(tokens, config) == expected
    settle_padding(SimpleNamespace(config=config, score=None), tokens)
    assert config.pad_token_id == expected
    assert tokens.pad_token_id == expected or tokens.pad_token == f"<{expected}>"


def test_a_model_without_any_token_to_pad_with_is_refused_and_an_encoder_keeps_its_own():
    with pytest.raises(InputError, match=r"neither a padding token nor an end of text"):
        pad_token_id(_numbers(), SimpleNamespace())
    config = SimpleNamespace(pad_token_id=1)
    settle_padding(SimpleNamespace(config=config), _numbers(pad_token_id=0))
    assert config.pad_token_id == 1


def test_a_merged_decoder_pads_as_the_run_did(tiny_encoder, sentences, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    transformers.GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "base")
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[PAD]")
    plain.pad_token = None
    plain.save_pretrained(tmp_path / "base")
    plain = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert plain.pad_token is None and plain.eos_token_id == 0
    config = TrainConfig.of(
        model=str(tmp_path / "base"), data=str(sentences), out=str(tmp_path / "run"), max_steps=4, batch_size=4, r=2
    )
    measured = train(config).metrics
    run, merged = str(tmp_path / "run"), str(tmp_path / "merged")
    for scores in compare(run, run_config(run), ("adapter", "merged", "exported")).results.values():
        assert scores["loss"] == pytest.approx(measured["loss"], abs=2e-3)
    assert main(["merge", run, "--out", merged]) == 0
    saved = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (saved["pad_token_id"], saved["problem_type"]) == (0, "single_label_classification")
    assert main(["evaluate", merged, "--data", str(sentences / "validation.jsonl")]) == 0


def test_the_merged_model_of_a_regression_is_one(tiny_encoder, tmp_path):
    base = load_base(str(tiny_encoder), "SEQ_CLS", problem_type="multi_label_classification")
    base.bert.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", [{"sentence": f"day {n}", "label": n / 7} for n in range(24)])
    write_rows(tmp_path / "validation.jsonl", [{"sentence": f"day {n}", "label": n / 7} for n in range(8)])
    fields: dict[str, Any] = {"max_steps": 4, "batch_size": 4, "r": 2}
    measured = train(
        TrainConfig.of(model=str(tmp_path / "base"), data=str(tmp_path), out=str(tmp_path / "run"), **fields)
    ).metrics
    run = str(tmp_path / "run")
    for scores in compare(run, run_config(run), ("adapter", "merged")).results.values():
        assert scores["loss"] == pytest.approx(measured["loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"target_modules": ["query", "vallue"]}, r"matches target_modules \['vallue'\]; its linear layers end in"),
        ({"target_modules": ["all-linear", "query"]}, r"all-linear must be the only entry"),
        ({"target_modules": r".*\.(querry|kee)"}, r"matches target_modules \['\.\*"),
        ({"target_modules": "(query"}, r"'\(query' is not a regular expression"),
        ({"exclude_modules": ["pooller"]}, r"exclude_modules 'pooller' matches nothing"),
        ({"exclude_modules": ["pooler"]}, r"exclude_modules 'pooler' matches nothing .*near names: .*pooler.dense"),
        ({"exclude_modules": r".*\.pooller.*"}, r"exclude_modules .* matches nothing"),
        ({"modules_to_save": ["clasifier"]}, r"modules_to_save 'clasifier' matches nothing .*near names: classifier"),
        ({"target_modules": ["query", "classifier"]}, r"target_modules 'classifier' matches classifier .*saved whole"),
        ({"target_modules": ["query", "key"], "exclude_modules": ["key"]}, r"target_modules 'key' matches"),
        ({"layers_to_transform": [0, 7], "target_modules": ["query"]}, r"layers_to_transform \[7\] are no blocks"),
        ({"rank_pattern": {"qurey": 4}}, r"rank_pattern 'qurey' matches nothing .*near names: query"),
        ({"alpha_pattern": {"key": 4, "layer.9.*": 2}}, r"alpha_pattern 'layer.9.\*' matches nothing"),
    ],
)  # fmt: skip
def test_names_that_match_nothing_are_refused(fields, word):
    for config in (LRLoraConfig, peft.LoraConfig, peft.AdaLoraConfig):
        more = {"total_step": 10} if config is peft.AdaLoraConfig else {}
        given = {"target_modules": "all-linear", "task_type": "SEQ_CLS", **fields, **more}
        if config is peft.AdaLoraConfig and "layers_to_transform" in fields:
            continue
        with pytest.raises(InputError, match=word):
            put_on(tiny_bert(), config(**given))


def test_one_word_may_be_a_regular_expression(tiny_encoder, sentences, tmp_path, capsys):
    flags = ["--model", str(tiny_encoder), "--data", str(sentences), "--max_steps", "2", "--r", "2"]
    for method in ("lrlora", "lora"):
        out = tmp_path / method
        where = ["--out", str(out), "--target_modules", r".*\.(query|key)", "--exclude_modules", r".*layer\.0\..*"]
        for _ in range(2):
            # the second time the finished run is shown
            assert main(["train", *flags, *where, "--method", method]) == 0
        settings = json.loads((out / "config.json").read_text())["settings"]
        assert settings["target_modules"] == [r".*\.(query|key)"]
        targets = load_adapter(str(out)).base_model.targeted_module_names
        assert targets == [f"bert.encoder.layer.1.attention.self.{name}" for name in ("query", "key")]
    capsys.readouterr()
    assert main(["train", *flags, "--out", str(tmp_path / "two"), "--target_modules", "query", ".*key"]) == 2
    assert "target_modules takes names, or one word" in capsys.readouterr().err


def test_an_adapter_is_no_base(tiny_encoder, sentences, tmp_path, capsys, monkeypatch):
    flags = ["--data", str(sentences), "--max_steps", "2", "--r", "2"]
    assert main(["train", "--model", str(tiny_encoder), *flags, "--out", str(tmp_path / "one")]) == 0
    assert main(["train", "--model", str(tiny_encoder), *flags, "--out", str(tmp_path / "l"), "--method", "lora"]) == 0
    snapshot = tmp_path / "hub" / "models--some--adapter" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "one" / "adapter").rename(snapshot)
    (tmp_path / "one" / "adapter").symlink_to(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    for model in ("one/adapter", "one", "./one/", "some/adapter", "l", "l/adapter", str(tmp_path / "one")):
        for command in (
            ["train", *flags, "--out", "two"], ["merge", "one", "--out", "m"], ["export", "one", "--out", "m"],
            ["evaluate", "one", "--models", "base"], ["ranks", "one", "--rank_pattern", "m"],
        ):  # fmt: skip
            capsys.readouterr()
            assert main([*command, "--model", model]) == 2, (command, model)
            assert "not a base model: what it has learned would be lost; merge it first" in capsys.readouterr().err
    assert not (tmp_path / "two").exists() and not (tmp_path / "m").exists()
