"""Arms of any method: of PEFT by its name, of another package by its config class; trained, or refused by name."""

import dataclasses
import json

import peft
import pytest
import torch

from lrlora import InputError
from peft_study import read_study
from peft_study.arms import check_arm
from peft_study.estimate import COSTS, estimates
from peft_study.methods import METHODS, method_named
from peft_study.spec import Arm, Task
from tests.conftest import write_rows
from tests.peft_study.conftest import small_study
from tests.peft_study.test_arms import one_cell

OWN = "tests.peft_study.own_method:HalvedConfig"
FILE = """\
study: any
learning_rates: [1e-3]
seeds: [0]
tasks:
  - {name: rte, data: glue}
arms:
  - ARM
"""
CONFIGS = {
    "oft": {"r": 0, "oft_block_size": 8},
    "ia3": {},
    "boft": {"boft_block_size": 4},
    "loha": {"r": 2},
    "lokr": {"r": 2},
    "vblora": {"vector_length": 16, "num_vectors": 32},
    "ln_tuning": {"target_modules": ["LayerNorm"]},
    OWN: {"r": 2, "halvings": 2},
}


def read(tmp_path, arm: str):
    (tmp_path / "study.yaml").write_text(FILE.replace("ARM", arm))
    return read_study(tmp_path / "study.yaml")


def refused(tmp_path, arm: str) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, arm)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", CONFIGS)
def test_a_method_is_read_estimated_and_trained(tiny_encoder, words, tmp_path, method):
    (arm,) = read(tmp_path, json.dumps({"name": "it", "method": method, "config": CONFIGS[method]})).arms
    assert arm == Arm("it", method, CONFIGS[method])
    study = small_study(tiny_encoder, words, arms=(arm,), learning_rates=(1e-2,))
    row = one_cell(study, arm)
    assert row.status == "done", row.traceback
    assert (row.method, row.steps) == (method, 3)
    assert row.adapter is not None and row.trainable_parameters is not None
    if method != OWN:
        assert row.adapter["peft_type"] == method.upper()
    for name, value in CONFIGS[method].items():
        assert row.adapter[name] == value
    assert 0 < row.trainable_parameters < (row.total_parameters or 0)
    if method == "boft":
        with pytest.raises(InputError, match=r"method boft cannot be built from shapes only \(.*meta tensors"):
            estimates(study)
    else:
        assert estimates(study)[0].trainable_parameters == row.trainable_parameters
    # it trained: other rates end elsewhere
    other = one_cell(dataclasses.replace(study, learning_rates=(1e-1,)), arm)
    assert other.status == "done" and other.loss != row.loss


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_config_of_one_s_own_does_what_its_class_says(tiny_encoder, words):
    study = small_study(tiny_encoder, words, arms=(Arm("it", OWN, {"r": 2, "halvings": 2}),))
    row = one_cell(study, study.arms[0])
    assert row.adapter is not None and (row.adapter["halvings"], row.adapter["lora_alpha"]) == (2, 0.5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_prompts_are_learned_for_labels_and_for_texts(tiny_encoder, tiny_decoder, words, tmp_path, method):
    arm = Arm("it", method, {"num_virtual_tokens": 3})
    row = one_cell(small_study(tiny_encoder, words, arms=(arm,)), arm)
    assert row.status == "done", row.traceback
    write_rows(tmp_path / "mix_train.jsonl", [{"instruction": f"what is {n}", "output": "it"} for n in range(40)])
    task = Task("mix", data=str(tmp_path / "mix_train.jsonl"), kind="causal", template="plain", max_steps=2,
                batch_size=4, max_length=32, validation_rows=4, test_rows=4, test_from="training")  # fmt: skip
    row = one_cell(small_study(tiny_decoder, words, arms=(arm,), tasks=(task,)), arm)
    assert row.status == "done", row.traceback


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_prompts_are_refused_for_facts_in_an_encoder(tiny_encoder, words):
    arm = Arm("it", "prompt_tuning", {"num_virtual_tokens": 3})
    task = Task("held", kind="facts", facts=8, values=4, max_steps=2, batch_size=8, max_length=32)
    row = one_cell(small_study(tiny_encoder, words, arms=(arm,), tasks=(task,)), arm)
    assert row.status == "failed"
    assert (row.reason or "").startswith("PromptTuningConfig learns prompts, for which PEFT must know the task")


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("{name: a, method: OFT}", "line 7: arm 'a': no method 'OFT'; did you mean 'oft'?; there are: full, lora, "),
        ("{name: a, method: boftt}", "did you mean 'boft'?"),
        (
            "{name: a, method: oft, config: {oft_blok_size: 4}}",
            "unknown field 'oft_blok_size'; did you mean 'oft_block",
        ),
        ("{name: a, method: oft, config: 4}", "line 7: config of arm 'a' must be a mapping of the config's fields"),
        ("{name: a, method: oft, r: 4, config: {r: 4}}", "config of arm 'a' has 'r', which the arm has as well"),
        ("{name: a, method: oft, config: {method: b}}", "line 7: 'method' is a key of the arm itself, not a field"),
        ("{name: a, method: oft, config: {r: many}}", "r must be a whole number, got 'many'"),
        ("{name: a, method: oft, config: {r: 4, oft_block_size: 4}}", "OFTConfig refuses its fields: "),
        ("{name: a, method: ia3, config: {target_modules: [query]}}", "target_modules is the same for every arm"),
        ("{name: a, method: 'nowhere.x:C'}", "needs the module 'nowhere.x', which cannot be imported: No module named"),
        ("{name: a, method: 'tests.peft_study.own_method:Halved'}", "has no 'Halved'; did you mean 'HalvedConfig'?"),
        ("{name: a, method: 'tests.peft_study.own_method:not_a_class'}", "is a function, needed a dataclass that is a"),
        ("{name: a, method: 'pathlib:Path'}", "is the class Path, needed a dataclass that is a subclass of peft."),
        ("{name: a, method: 'tests.peft_study.own_method:Unregistered'}", "for which PEFT has no tuner; register the"),
        ("{name: a, method: 'tests.peft_study.own_method:HalvedConfig', halving: 2}", "did you mean 'halvings'?"),
    ],
)
def test_what_is_no_method_or_no_field_is_refused_by_name(tmp_path, arm, said):
    assert said in refused(tmp_path, arm)


def test_a_list_in_a_config_is_a_grid(tmp_path):
    arms = read(tmp_path, "{name: oft, method: oft, config: {r: 0, oft_block_size: [4, 8]}}").arms
    assert [(arm.name, arm.fields) for arm in arms] == [
        (f"oft-oft_block_size{size}", {"r": 0, "oft_block_size": size}) for size in (4, 8)
    ]
    # the two ways to write a field are one
    assert (
        read(tmp_path, "{name: a, method: lora, r: 4}").arms
        == read(tmp_path, "{name: a, method: lora, config: {r: 4}}").arms
    )


def test_every_method_of_peft_has_a_name():
    for kind, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if kind.lower() in ("poly", "multitask_prompt_tuning"):
            with pytest.raises(InputError, match="needs the number of a task"):
                method_named(kind.lower())
        elif kind.lower() not in METHODS:
            assert method_named(kind.lower()).config is config


def test_what_a_config_cannot_take_from_the_study_is_refused(tiny_encoder, words):
    study = small_study(tiny_encoder, words, exclude_modules=("dense",))
    with pytest.raises(InputError, match="C3AConfig has no exclude_modules, which the study sets for every arm"):
        check_arm(study, Arm("a", "c3a"))


def test_a_prompt_is_scored_as_the_model_s_own_loss_scores_it(tiny_decoder):
    from transformers import AutoModelForCausalLM

    from lrlora.evaluation.labelled import labelled_logits

    base = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(base, config).eval()
    ids = torch.randint(5, 90, (2, 7))
    labels = ids.masked_fill(torch.arange(7) < 3, -100)
    with torch.no_grad():
        logits, wanted, _ = labelled_logits(model, {"input_ids": ids, "labels": labels})
        found = torch.nn.functional.cross_entropy(logits, wanted)
        torch.testing.assert_close(found, model(input_ids=ids, labels=labels).loss)


def test_the_costs_of_the_estimates_are_those_of_the_benchmark():
    from benchmarks import step_costs

    assert COSTS.read_text() == step_costs.text()
    assert set(step_costs.MEASURED) <= set(METHODS)
