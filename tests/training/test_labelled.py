"""Logits of labels alone: the model's own loss and gradients, of every architecture, and where it cannot be had."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch.nn.functional import cross_entropy
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
    TrainingArguments,
)

from lrlora.data.encode import IGNORED
from lrlora.evaluation.labelled import labelled_logits
from lrlora.training.labelled import LabelledTrainer

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(intermediate_size=48, **SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=2)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)),
    # a factor behind the head, a curve behind the head, and a loss beside that of the tokens
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


def batch() -> dict[str, torch.Tensor]:
    """Three rows whose labels begin and end in different places."""
    ids = torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, :4] = labels[1, 7:] = labels[2, :6] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def trainer_of(model, folder) -> LabelledTrainer:
    return LabelledTrainer(model=model, args=TrainingArguments(str(folder), use_cpu=True))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("items", [None, 14], ids=["one batch", "accumulated"])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_all_logits(name, items, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]()
    model.eval()
    trainer, widths = trainer_of(model, tmp_path), []
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: widths.append(out.shape[:-1].numel()))
    named = {} if items is None else {"num_items_in_batch": items}
    whole = Trainer.compute_loss(trainer, model, batch(), **named)
    theirs = gradients(model, whole)
    ours = trainer.compute_loss(model, batch(), **named)
    assert widths == [27, 5 + 3 + 3]
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(model, ours), theirs, rtol=1e-4, atol=1e-6)
    assert "_loss_function" not in vars(model)


def test_an_adapter_on_the_head_is_trained(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(MODELS["llama"](), LoraConfig(target_modules=["q_proj", "lm_head"], init_lora_weights=False))
    model.eval()
    trainer = trainer_of(model, tmp_path)
    theirs = gradients(model, Trainer.compute_loss(trainer, model, batch()))
    ours = gradients(model, trainer.compute_loss(model, batch()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


class ByHand(LlamaForCausalLM):
    """A model whose forward works out its own loss."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **named):
        out = super().forward(input_ids=input_ids, attention_mask=attention_mask, **named)
        if labels is not None:
            out.loss = cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        return out


def test_a_model_with_a_loss_of_its_own_keeps_it(tmp_path):
    torch.manual_seed(0)
    model = ByHand(MODELS["llama"]().config)
    model.eval()
    trainer = trainer_of(model, tmp_path)
    theirs = Trainer.compute_loss(trainer, model, batch())
    for _ in range(2):
        assert trainer.compute_loss(model, batch()).item() == theirs.item()


def test_virtual_tokens_keep_all_logits(tmp_path):
    torch.manual_seed(0)
    model = get_peft_model(MODELS["llama"](), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    model.eval()
    trainer = trainer_of(model, tmp_path)
    theirs = Trainer.compute_loss(trainer, model, batch())
    assert trainer.compute_loss(model, batch()).item() == theirs.item()


def test_labelled_logits():
    torch.manual_seed(0)
    model = MODELS["gpt2"]()
    model.eval()
    rows = batch()
    logits, wanted, is_label = labelled_logits(model, rows)
    whole = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    torch.testing.assert_close(logits, whole[:, :-1][is_label])
    assert wanted.tolist() == rows["labels"][:, 1:][is_label].tolist() and logits.shape == (11, 64)
