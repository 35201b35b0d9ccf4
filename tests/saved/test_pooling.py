"""A head that was trained on the mean reads it in every reader, and is in no folder that cannot say so."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lrlora import InputError, LRLoraConfig
from lrlora.cli import main
from lrlora.export.compare import compare, run_config, score_model
from lrlora.files import write_json
from lrlora.saved import load_adapter, set_pooling
from lrlora.saved.pooling import _ENCODERS, mean_of_tokens
from lrlora.training import TrainConfig, train
from tests.conftest import tiny_bert, tiny_llama, token_ids, write_rows

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3,
    "vocab_size": 64, "max_position_embeddings": 80, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
    "cls_token_id": 2, "sep_token_id": 3, "embedding_size": 32,
}  # fmt: skip
_OTHERS: dict[str, dict[str, Any]] = {
    "distilbert": {"vocab_size": 64, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2},
    "xlnet": {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
    "flaubert": {"vocab_size": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 2},
    "xlm": {"vocab_size": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 2},
    "big_bird": {**_SIZES, "attention_type": "original_full"},
    "longformer": {**_SIZES, "attention_window": 8},
    "rembert": {**_SIZES, "input_embedding_size": 32, "output_embedding_size": 32},
}


def encoder(kind: str) -> Any:
    """A small classifier of an architecture, random, in evaluation."""
    config = AutoConfig.for_model(kind, **_OTHERS.get(kind, _SIZES))
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        # some architectures leave weights as the memory was, or all zero
        torch.nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else None
    return model.eval()


def padded(to: int = 11) -> dict[str, torch.Tensor]:
    """A row of 6 tokens, padded, and a row of 11."""
    ids, mask = torch.randint(4, 64, (2, to)), torch.ones(2, to, dtype=torch.long)
    ids[0, 6:], mask[0, 6:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def with_gradient(model: Any, batch: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters that a loss reaches."""
    model.zero_grad()
    model(**batch, labels=torch.tensor([0, 1])).loss.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", _ENCODERS)
def test_the_head_reads_the_mean_of_the_tokens_and_no_padding(kind):
    model, batch, seen = encoder(kind), padded(), {}
    model.base_model.register_forward_hook(lambda module, args, output: seen.update(hidden=output[0].detach()))
    before, trained = model(**batch).logits, with_gradient(model, batch)
    set_pooling(model, "mean")
    together = model(**batch).logits
    alone = model(**{name: value[:1, :6] for name, value in batch.items()}).logits
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    assert (together - before).abs().max() > 1e-3
    # whichever token the head reads, it is this mean
    if not hasattr(model.config, "classifier_pooling"):
        given = model.base_model(**batch).last_hidden_state[0].detach()
        torch.testing.assert_close(given, seen["hidden"][0, :6].mean(dim=0).expand(11, -1))
    # what was trained before is trained still, but for the pooler that is gone
    left = dict(model.named_parameters())
    assert {name for name in trained if name in left} <= with_gradient(model, batch)
    assert all(".pooler." in name for name in trained if name not in left)


def test_the_mean_leaves_padding_and_prefixes_out():
    hidden = torch.arange(8.0).reshape(1, 4, 2)
    assert mean_of_tokens(hidden, None).tolist() == [[3.0, 4.0]]
    assert mean_of_tokens(hidden, torch.tensor([[1, 1, 0, 0]])).tolist() == [[1.0, 2.0]]
    assert mean_of_tokens(hidden, torch.tensor([[0, 1, 0, 0]])).tolist() == [[2.0, 3.0]]
    # three places of a prefix, which have no hidden states
    assert mean_of_tokens(hidden, torch.tensor([[1, 1, 1, 0, 0, 1, 1]])).tolist() == [[5.0, 6.0]]
    assert mean_of_tokens(hidden, torch.zeros(1, 4)).tolist() == [[0.0, 0.0]]
    assert mean_of_tokens(hidden.to(torch.bfloat16), torch.ones(1, 4)).dtype == torch.bfloat16


def test_the_mask_counts_without_its_name_and_copies_pool_too():
    model = tiny_bert()
    set_pooling(model, "mean")
    ids, mask = token_ids(), torch.ones(2, 7, dtype=torch.long)
    mask[:, 5:] = 0
    wanted = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(model(ids, mask).logits, wanted)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied(ids, mask).logits, wanted)
    assert (model(ids).logits - wanted).abs().max() > 1e-4


def test_the_pooler_that_is_bypassed_is_not_adapted():
    model = tiny_bert()
    set_pooling(model, "mean")
    adapted = get_peft_model(model, LRLoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS"))
    assert not [name for name, _ in adapted.named_parameters() if "pooler" in name]
    adapted(input_ids=token_ids(), labels=torch.tensor([0, 1])).loss.backward()
    # as DDP needs it
    assert not [name for name, p in adapted.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_what_has_no_such_pooling_is_refused_by_name(pooling):
    decoder = transformers.LlamaForSequenceClassification(tiny_llama().config)
    with pytest.raises(
        InputError, match=rf"LlamaForSequenceClassification cannot be read with --pooling {pooling}, .*"
    ):
        set_pooling(decoder, pooling)
    with pytest.raises(InputError, match="BertModel cannot be read"):
        set_pooling(tiny_bert().bert, pooling)
    with pytest.raises(InputError, match=r"FNetForSequenceClassification cannot be read .* leave --pooling out"):
        set_pooling(encoder("fnet"), pooling)
    set_pooling(decoder, "auto")
    with pytest.raises(InputError, match="pooling must be one of auto, mean, cls, got 'max'"):
        TrainConfig(pooling="max")  # pyright: ignore[reportArgumentType]


def settings(model: Any, data: Path, out: Path, **fields: Any) -> TrainConfig:
    chosen = {"max_steps": 6, "batch_size": 4, "r": 2, "learning_rate": 2e-2, "max_length": 16, "pooling": "mean"}
    return TrainConfig.of(model=str(model), data=str(data), out=str(out), **{**chosen, **fields})


@pytest.fixture
def run(tiny_encoder, sentences, tmp_path) -> Path:
    """A run with mean pooling and its checkpoint."""
    train(settings(tiny_encoder, sentences, tmp_path / "run", save_steps=3))
    return tmp_path / "run"


def test_every_reader_restores_the_pooling(run, tmp_path, capsys):
    measured = json.loads((run / "metrics.json").read_text())
    assert json.loads((run / "adapter" / "pooling.json").read_text()) == "mean"
    said: list[str] = []
    results = compare(str(run), run_config(str(run)), ("adapter", "merged", "exported"), say=said.append).results
    assert list(results) == ["adapter", "exported"]
    assert results["adapter"]["loss"] == pytest.approx(measured["loss"], abs=1e-5)
    assert results["exported"]["loss"] == pytest.approx(measured["loss"], abs=2e-3)
    assert [line for line in said if line.startswith("merged: left out, it was trained with --pooling mean")]
    # a checkpoint has no file of its own, the run around it says it
    ids = {"input_ids": torch.randint(5, 500, (2, 9))}
    last = load_adapter(str(run / "checkpoints" / "checkpoint-6"))
    torch.testing.assert_close(last(**ids).logits, load_adapter(str(run))(**ids).logits)
    (run / "adapter" / "pooling.json").unlink()
    moved = (run / "adapter").rename(tmp_path / "moved")
    assert (load_adapter(str(moved))(**ids).logits - last(**ids).logits).abs().max() > 1e-4
    write_json(moved / "pooling.json", "max")
    with pytest.raises(InputError, match=r"moved/pooling.json must be one of auto, mean, cls, got 'max'"):
        load_adapter(str(moved))


def test_a_merge_is_refused_and_an_export_says_what_peft_does_not_know(run, tmp_path, capsys):
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 2
    assert "transformers' class for bert has no such setting" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()
    assert main(["evaluate", str(run), "--models", "merged"]) == 2
    assert main(["ranks", str(run / "adapter")]) == 0
    assert "pooler" not in capsys.readouterr().out
    assert main(["export", str(run), "--out", str(tmp_path / "lora"), "--energy", "1"]) == 0
    assert "set_pooling(base, 'mean') before peft loads it" in capsys.readouterr().err
    assert json.loads((tmp_path / "lora" / "pooling.json").read_text()) == "mean"
    ids = {"input_ids": torch.randint(5, 500, (2, 9))}
    exported = load_adapter(str(tmp_path / "lora"))(**ids).logits
    torch.testing.assert_close(exported, load_adapter(str(run))(**ids).logits, rtol=1e-3, atol=1e-3)
    # the same place again: the file is one that an export writes
    assert main(["export", str(run), "--out", str(tmp_path / "lora"), "--overwrite"]) == 0


def test_the_pooling_belongs_to_a_run(run, tiny_encoder, sentences):
    with pytest.raises(InputError, match="other settings \\(pooling 'mean' -> 'auto'\\)"):
        train(settings(tiny_encoder, sentences, run, pooling="auto"))
    # a run that is gone on with
    for name in ("metrics.json", "adapter/pooling.json"):
        (run / name).unlink()
    resumed = train(settings(tiny_encoder, sentences, run)).metrics
    assert resumed["was_resumed"] and json.loads((run / "adapter" / "pooling.json").read_text()) == "mean"
    assert compare(str(run), run_config(str(run)), ("adapter",)).results["adapter"]["loss"] == pytest.approx(
        resumed["loss"], abs=1e-5
    )


def test_a_run_of_before_there_was_a_choice_is_known_again(tiny_encoder, sentences, tmp_path, capsys):
    config = settings(tiny_encoder, sentences, tmp_path / "run", pooling="auto", max_steps=1)
    train(config)
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    del described["settings"]["pooling"]
    write_json(tmp_path / "run" / "config.json", described)
    train(config)
    assert "finished before" in capsys.readouterr().err
    with pytest.raises(InputError, match="pooling 'auto' -> 'mean'"):
        train(settings(tiny_encoder, sentences, tmp_path / "run", max_steps=1))


def test_modernbert_carries_the_pooling_into_a_merge(tiny_encoder, sentences, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    ends = {"pad_token_id": 0, "cls_token_id": 101, "bos_token_id": 101, "sep_token_id": 102, "eos_token_id": 102}
    config = transformers.ModernBertConfig(**{**_SIZES, **ends, "vocab_size": len(tokenizer)})
    torch.manual_seed(1)
    transformers.ModernBertModel(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    measured = train(settings(tmp_path / "base", sentences, tmp_path / "run")).metrics
    assert main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged")]) == 0
    merged = str(tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["classifier_pooling"] == "mean"
    scores = score_model(merged, run_config(merged, data=str(sentences / "validation.jsonl"))).results["model"]
    assert scores["loss"] == pytest.approx(measured["loss"], abs=1e-3)


def test_a_base_of_sentence_transformers_is_told_of(tiny_encoder, sentences, tmp_path, capsys):
    base = tmp_path / "base"
    AutoModelForSequenceClassification.from_pretrained(tiny_encoder).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(base)
    (base / "1_Pooling").mkdir()
    line = (
        f"lrlora: {base} was trained with mean pooling, and its head reads one token; --pooling mean gives it the mean"
    )
    for number, (described, pooling, is_told) in enumerate((
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "auto", True),
        ({"pooling_mode": "mean"}, "auto", True),
        ({"pooling_mode_mean_tokens": True}, "mean", False),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "auto", False),
    )):  # fmt: skip
        write_json(base / "1_Pooling" / "config.json", described)
        train(settings(base, sentences, tmp_path / str(number), pooling=pooling, max_steps=1))
        assert (line in capsys.readouterr().err.splitlines()) is is_told


def test_a_causal_task_has_no_pooling(tiny_decoder, tmp_path):
    rows = write_rows(tmp_path / "a.jsonl", [{"instruction": f"say {n}", "output": "yes"} for n in range(20)])
    with pytest.raises(InputError, match=r"--pooling is of classification and regression, .* leave --pooling out"):
        train(settings(tiny_decoder, rows, tmp_path / "run"))
