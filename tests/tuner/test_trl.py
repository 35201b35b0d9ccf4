"""trl makes a reference of an adapter by copying parameters by their names, or by switching it off."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model

from lrlora import LRLoraConfig, TauCallback
from lrlora.tuner import deltas
from tests.conftest import disturb, move_knees, tiny_llama, token_ids

FIELDS = {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def trained(**fields) -> PeftModel:
    """An adapter after a training: knees that have moved, and frozen buffers are not where they began."""
    model = get_peft_model(tiny_llama(), LRLoraConfig(**{**FIELDS, "tau_warmup_steps": 1, **fields}))
    disturb(model)
    if model.peft_config["default"].tau == "auto":
        assert move_knees(model, step=1, total_steps=10)
        assert all(delta.tau.isfinite().all() for *_, delta in deltas(model))
    return model.train()


def logits(model, adapter: str) -> torch.Tensor:
    model.set_adapter(adapter)
    with torch.no_grad():
        return model(input_ids=token_ids()).logits


CONFIGS = [
    {"carrier": "signs", "carrier_start": "half"},
    {"carrier": "signs", "phi": "linear", "share": "frozen", "carrier_start": "open"},
    {"tau": "auto"},
    {"tau": "auto", "share": "global"},
    {"tau": "auto", "phi": "residual"},
    {"share": "frozen"},
    {"tau": "auto", "share": "frozen"},
    {"phi": "sine"},
]


@pytest.mark.parametrize("fields", CONFIGS, ids=str)
@pytest.mark.parametrize("is_same_object", [True, False])
def test_a_copy_of_the_parameters_is_a_copy_of_the_function(fields, is_same_object):
    model = trained(**fields)
    config = model.peft_config["default"]
    model.add_adapter("ref", config if is_same_object else copy.deepcopy(config))
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    assert torch.equal(logits(model, "ref"), logits(model, "default"))
    base = tiny_llama()(input_ids=token_ids()).logits
    assert not torch.allclose(logits(model, "ref"), base)


def test_a_fresh_second_adapter_begins_as_plain_lora_in_training():
    model = trained(tau="auto")
    model.add_adapter("second", copy.deepcopy(model.peft_config["default"]))
    model.set_adapter("second")
    first = [delta.tau.item() for *_, delta in deltas(model, "default")]
    assert not move_knees(model, step=0, total_steps=10)
    assert all(delta.tau.isinf() for *_, delta in deltas(model, "second"))
    # while an adapter that was trained before goes on from its knee
    model.set_adapter("default")
    assert not move_knees(model, step=0, total_steps=10)
    assert [delta.tau.item() for *_, delta in deltas(model, "default")] == first


def test_an_adapter_with_another_phi_takes_nothing_over():
    model = trained(tau="auto")
    model.add_adapter("second", LRLoraConfig(**FIELDS, tau="auto", phi="residual"))
    assert all(delta.tau.isinf() for *_, delta in deltas(model, "second"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fields", [*CONFIGS[:4], *CONFIGS[5:7]], ids=str)
@pytest.mark.parametrize("is_loaded", [False, True])
def test_dpo_begins_at_rewards_of_zero(tmp_path, tiny_decoder, fields, is_loaded):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    base = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    model = get_peft_model(base, LRLoraConfig(**FIELDS, **fields, tau_warmup_steps=1))
    disturb(model)
    move_knees(model, step=1, total_steps=10)
    if is_loaded:
        model.save_pretrained(tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(tiny_decoder)
        model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    rows = [{"prompt": "how was it", "chosen": " a fine film", "rejected": " a sad waste"}] * 4
    arguments = DPOConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, logging_steps=1, report_to=[],
        use_cpu=True, bf16=False, disable_tqdm=True, learning_rate=0.01, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[TauCallback()],
    )
    assert "ref" in trainer.model.peft_config
    trainer.train()
    first, second = [entry for entry in trainer.state.log_history if "rewards/chosen" in entry][:2]
    assert first["rewards/chosen"] == 0 and first["rewards/rejected"] == 0
    assert second["rewards/margins"] != 0


@pytest.mark.filterwarnings("ignore")
def test_grpo_samples_from_the_adapter_and_takes_the_base_for_its_reference(tmp_path, tiny_decoder):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=16, num_generations=16,
        max_completion_length=8, learning_rate=0.05, beta=0.001, logging_steps=1, report_to=[], use_cpu=True,
        bf16=False, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    # of small weights every token would be as likely as another, whatever the adapter does
    base.lm_head.weight.data *= 20
    liked = (base.lm_head.weight[:, 0] > 0).tolist()
    trainer = GRPOTrainer(
        model=base,
        reward_funcs=lambda completion_ids, **_: [sum(liked[i] for i in ids) / 8 for ids in completion_ids],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["how was it"] * 16}),
        processing_class=AutoTokenizer.from_pretrained(tiny_decoder),
        peft_config=LRLoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert steps[0]["kl"] == 0 and steps[-1]["kl"] > 0.1
    assert steps[-1]["reward"] > steps[0]["reward"] + 0.25
