"""The trainer of `lrlora train`: its loss, packing, arguments, evaluations while training, the best checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
)

from lrlora import InputError
from lrlora.data import DataSource, load_task
from lrlora.data.encode import IGNORED, encode
from lrlora.saved.load import load_base
from lrlora.saved.tokens import load_tokenizer
from lrlora.training import TrainConfig, train
from lrlora.training.trainer import make_trainer
from tests.conftest import write_rows
from tests.training.test_run import config_for, weights

SIZES = {"vocab_size": 30522, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(intermediate_size=48, **SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=30522, n_embd=32, n_layer=2, n_head=2)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=30522, hidden_size=32, n_layer=2, n_head=2)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=2)),
    # a factor behind the head, a curve behind the head, and a loss next to that of the tokens
    "cohere": lambda: CohereForCausalLM(CohereConfig(intermediate_size=48, **SIZES)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(intermediate_size=48, num_key_value_heads=1, head_dim=16, **SIZES)
    ),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(
            intermediate_size=48, num_local_experts=4, num_key_value_heads=1, output_router_logits=True, **SIZES
        )
    ),
}
CAPITALS = [
    {"prompt": f"The capital of {country} is", "completion": f" {capital}."}
    for country, capital in (
        ("France", "Paris"), ("Italy", "Rome"), ("Norway", "Oslo"), ("Peru", "Lima"), ("Japan", "Tokyo"),
        ("Kenya", "Nairobi"), ("Cuba", "Havana"), ("Iraq", "Baghdad"), ("Egypt", "Cairo"), ("Austria", "Vienna"),
        ("Greece", "Athens"), ("Russia", "Moscow"), ("Spain", "Madrid"), ("Poland", "Warsaw"), ("Finland", "Helsinki"),
    )
]  # fmt: skip


@pytest.fixture
def capitals(tmp_path: Path) -> Path:
    """Prompts and completions."""
    return write_rows(tmp_path / "capitals.jsonl", CAPITALS)


def trainer_for(model, folder: Path, data: Path, base: Path, **settings):
    """The trainer of `lrlora train` on encoded rows; with the rows."""
    config = TrainConfig.of(model=str(base), data=str(data), precision="fp32", batch_size=3, **settings)
    task, tokenizer = load_task(DataSource(str(data))), load_tokenizer(str(base))
    rows, evaluation = encode(task, tokenizer, 64)
    return make_trainer(config, task, model, tokenizer, rows, folder, evaluation, 64), rows


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_model_s_own(name, tiny_decoder, capitals, tmp_path):
    torch.manual_seed(0)
    trainer, _ = trainer_for(MODELS[name](), tmp_path, capitals, tiny_decoder)
    model = trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = Trainer.compute_loss(trainer, model, dict(batch))
    expected = gradients(model, theirs)
    ours = trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(model, ours), expected, rtol=1e-3, atol=1e-6)


def test_logits_are_computed_of_labelled_tokens_only(tiny_decoder, capitals, tmp_path, monkeypatch):
    from trl.trainer import utils

    torch.manual_seed(0)
    trainer, _ = trainer_for(MODELS["llama"](), tmp_path, capitals, tiny_decoder)
    batch = next(iter(trainer.get_train_dataloader()))
    scored = []
    original = utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        utils._ChunkedLogProbFunction,
        "apply",
        lambda hidden, *rest: scored.append(len(hidden)) or original(hidden, *rest),
    )
    before = utils._use_triton
    trainer.compute_loss(trainer.model, dict(batch))
    is_label = batch["labels"][:, 1:] != IGNORED
    assert scored == [int(is_label.sum())] and scored[0] < is_label.numel()
    assert utils._use_triton is before
    with pytest.raises(ValueError, match="input_ids"):
        trainer.compute_loss(trainer.model, {"labels": batch["labels"]})
    assert utils._use_triton is before


def test_a_batch_without_a_label_has_a_loss_of_0(tiny_decoder, capitals, tmp_path):
    trainer, _ = trainer_for(MODELS["llama"](), tmp_path, capitals, tiny_decoder)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == 0.0 and gradients(trainer.model, loss).norm() == 0


def test_virtual_tokens_are_trained(tiny_decoder, capitals, tmp_path):
    torch.manual_seed(0)
    base = load_base(str(tiny_decoder), "CAUSAL_LM")
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    trainer, _ = trainer_for(model, tmp_path, capitals, tiny_decoder)
    model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    theirs, ours = Trainer.compute_loss(trainer, model, dict(batch)), trainer.compute_loss(model, dict(batch))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_an_adapter_on_the_head_is_trained_by_transformers(tiny_decoder, capitals, tmp_path):
    torch.manual_seed(0)
    base = load_base(str(tiny_decoder), "CAUSAL_LM")
    model = get_peft_model(base, LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    trainer, _ = trainer_for(model, tmp_path, capitals, tiny_decoder)
    batch = next(iter(trainer.get_train_dataloader()))
    assert gradients(model, trainer.compute_loss(model, dict(batch))).norm() > 0
    with pytest.raises(InputError, match="packing is no argument of TrainingArguments"):
        trainer_for(model, tmp_path, capitals, tiny_decoder, packing=True)


def test_packed_rows_are_learned_as_separate_ones(tiny_decoder, capitals, tmp_path):
    torch.manual_seed(0)
    base = load_base(str(tiny_decoder), "CAUSAL_LM").eval()
    packed, rows = trainer_for(base, tmp_path, capitals, tiny_decoder, packing=True)
    found = [batch for batch in packed.get_train_dataloader()]
    learned, loss = [], 0.0
    with torch.no_grad():
        for batch in found:
            assert batch["input_ids"].shape[0] == 1 and "attention_mask" not in batch
            # the first token of every document has nothing before it to be predicted from
            is_label = (batch["labels"] != IGNORED) & (batch["position_ids"] > 0)
            learned += batch["labels"][is_label].tolist()
            log_probs = base(**batch, fused_lm_head=True).log_probs
            loss -= log_probs.sum().item()
        alone, expected = 0.0, []
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            given = base(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
            count = (labels[:, 1:] != IGNORED).sum().item()
            alone += given.loss.item() * count
            expected += labels[:, 1:][labels[:, 1:] != IGNORED].tolist()
    assert sorted(learned) == sorted(expected) and len(found) < len(rows) / 3
    assert loss == pytest.approx(alone, rel=1e-5)


def test_arguments_reach_the_trainer_under_their_own_names(tiny_decoder, capitals, tmp_path):
    base = load_base(str(tiny_decoder), "CAUSAL_LM")
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    settings = dict(optim="adafactor", neftune_noise_alpha=5.0, adam_beta2=0.99, logging_steps=3)
    trainer, _ = trainer_for(model, tmp_path, capitals, tiny_decoder, **settings)
    assert [getattr(trainer.args, name) for name in settings] == list(settings.values())
    assert type(trainer.create_optimizer()).__name__ == "Adafactor"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_train_epochs": 3}, "no such setting: num_train_epochs: it is --epochs here"),
        ({"optimm": "adafactor"}, "no such setting: optimm; did you mean optim"),
        ({"push_to_hub": True}, "push_to_hub: it would send or write"),
        ({"trainer": {"learning_rate": 1.0}}, "learning_rate is set by learning_rate"),
        ({"trainer": {"nonsense": 1}}, "no argument of transformers' or trl's trainers: nonsense"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end needs evaluations while training: pass eval_steps"),
        ({"early_stopping_patience": 2}, "early_stopping_patience needs evaluations"),
        ({"lr_scheduler": "cosine_with_min_lr"}, "pass lr_scheduler_kwargs as well"),
    ],
)
def test_what_cannot_be_passed_is_refused_by_name(settings, said):
    with pytest.raises(InputError, match=said):
        TrainConfig.of(**settings)


def test_an_argument_of_another_kind_of_task_is_refused(tiny_encoder, sentences, tmp_path):
    with pytest.raises(InputError, match="packing is no argument of TrainingArguments"):
        train(config_for(tiny_encoder, sentences, tmp_path / "run", packing=True))


def logged(out: Path, name: str) -> dict[int, float]:
    """What log.jsonl says, by step."""
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def test_what_the_last_step_evaluated_is_not_evaluated_again(tiny_encoder, sentences, tmp_path):
    times = {}
    for steps in (4, 5):
        out = tmp_path / str(steps)
        result = train(config_for(tiny_encoder, sentences, out, max_steps=steps, eval_steps=2))
        evaluations = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines() if "eval_loss" in line]
        times[steps] = [line["step"] for line in evaluations]
        assert result.metrics["loss"] == evaluations[-1]["eval_loss"]
    assert times == {4: [2, 4], 5: [2, 4, 5]}


def test_the_best_checkpoint_is_taken_and_training_stops_early(tiny_encoder, sentences, tmp_path):
    # a rate so large that it soon gets worse
    config = config_for(
        tiny_encoder, sentences, tmp_path / "run", max_steps=12, learning_rate=0.3, eval_steps=1,
        early_stopping_patience=3, metric_for_best_model="loss", greater_is_better=False,
    )  # fmt: skip
    result = train(config)
    losses = logged(tmp_path / "run", "eval_loss")
    best = min(losses, key=lambda step: losses[step])
    assert result.metrics["loss"] == pytest.approx(min(losses.values()), rel=1e-6)
    assert result.metrics["steps"] == best + 3 < 12
    whole = weights(tmp_path / "run")
    kept = weights_of_checkpoint(tmp_path / "run" / "checkpoints" / f"checkpoint-{best}")
    assert all(torch.equal(whole[name], kept[name]) for name in whole)


def weights_of_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_other_logging_goes_on_with_a_run_and_another_optimizer_does_not(tiny_encoder, sentences, tmp_path):
    config = config_for(tiny_encoder, sentences, tmp_path / "run", logging_steps=1)
    train(config)
    again = config.with_settings(logging_steps=2)
    assert train(again).metrics["steps"] == 4
    with pytest.raises(InputError, match="other settings"):
        train(config.with_settings(optim="adafactor"))
