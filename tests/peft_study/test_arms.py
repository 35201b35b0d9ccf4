import dataclasses

import pytest
import torch

from lrlora import InputError
from peft_study.arms import adapted, adapter_config, steps_of
from peft_study.cell import RANK_FIELDS, Bench
from peft_study.methods import METHODS
from peft_study.plan import digests_of, final_cells
from peft_study.spec import Arm
from peft_study.workers import prepare_process
from tests.conftest import tiny_bert
from tests.peft_study.conftest import small_study

SMALL = {"fourierft": {"n_frequency": 20}, "vera": {"r": 4}, "randlora": {"r": 4}, "hira": {"r": 4}, "peanut": {"r": 4}}


def one_cell(study, arm):
    """The first final row of an arm at the study's first rate."""
    prepare_process(1)
    (task,) = study.tasks
    cell = final_cells(study, digests_of(study), arm, task, study.learning_rates[0])[0]
    return Bench(study).run(cell)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_two_steps(tiny_encoder, words, method):
    study = small_study(tiny_encoder, words, arms=(Arm("it", method, SMALL.get(method, {})),))
    study = dataclasses.replace(study, tasks=(dataclasses.replace(study.tasks[0], max_steps=2),))
    row = one_cell(study, study.arms[0])
    assert row.status == "done", row.traceback
    assert (row.steps, row.train_rows, row.eval_rows) == (2, 48, 32)
    assert 0 <= row.value == row.metrics["accuracy"] <= 1
    assert row.loss == row.metrics["loss"] > 0
    is_whole = method == "full"
    assert (row.trainable_parameters == row.total_parameters) == is_whole
    assert (row.adapter is None) == is_whole
    assert 0 < row.file_bytes < (10**7 if is_whole else 10**6)
    if method in ("lrlora", "sine"):
        assert len(row.ranks) == 13
        assert set(row.ranks[0]) == set(RANK_FIELDS)
    else:
        assert row.ranks is None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_method_adapts_the_same_modules(tiny_encoder, words):
    study = small_study(tiny_encoder, words)
    placed = {}
    for method in METHODS.keys() - {"full"}:
        model = adapted(tiny_bert(2), adapter_config(study, Arm("it", method, SMALL.get(method, {})), "SEQ_CLS", 10))
        from peft.tuners.tuners_utils import BaseTunerLayer

        placed[method] = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    assert len(placed["lora"]) == 13
    for method, modules in placed.items():
        assert modules == placed["lora"], method


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_adalora_moves_its_ranks(tiny_encoder, words):
    arm = Arm("it", "adalora", {"init_r": 4, "target_r": 1})
    study = small_study(tiny_encoder, words, arms=(arm,))
    study = dataclasses.replace(study, tasks=(dataclasses.replace(study.tasks[0], max_steps=10),))
    row = one_cell(study, arm)
    assert row.status == "done", row.traceback
    assert row.adapter["total_step"] == row.steps == 10
    kept = sum(sum(ranks) for ranks in row.adapter["rank_pattern"].values())
    assert kept == 13 * 1


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs"), [(48, 8, 1, 2.0), (45, 8, 2, 1.0), (48, 8, 3, 1.5)]
)
def test_steps_are_counted_as_the_trainer_counts_them(tiny_encoder, words, rows, batch, accumulation, epochs):
    study = small_study(tiny_encoder, words)
    task = dataclasses.replace(
        study.tasks[0],
        max_steps=-1,
        train_rows=rows,
        batch_size=batch,
        gradient_accumulation=accumulation,
        epochs=epochs,
    )
    row = one_cell(dataclasses.replace(study, tasks=(task,)), study.arms[0])
    assert row.steps == steps_of(task, rows)


def test_the_rate_of_c_is_a_multiple_of_the_arm_s_rate(tiny_encoder, words):
    study = small_study(tiny_encoder, words)
    losses = set()
    for factor in (None, 10.0, 500.0):
        arm = Arm("it", "lrlora", {"r": 2, "tau": 0.001}, c_lr_factor=factor)
        losses.add(one_cell(dataclasses.replace(study, arms=(arm,)), arm).loss)
    assert len(losses) == 2


def test_what_goes_wrong_in_a_cell_is_its_row(tiny_encoder, words):
    study = small_study(tiny_encoder, words, learning_rates=(1e30, 1e-3))
    row = one_cell(study, study.arms[0])
    assert (row.status, row.value) == ("failed", None)
    assert row.reason.startswith("diverged: the loss became NaN or inf at step")
    nowhere = dataclasses.replace(study, target_modules=("quarry",))
    row = one_cell(nowhere, study.arms[0])
    assert "quarry" in row.reason
    with pytest.raises(InputError, match="no such model folder"):
        one_cell(dataclasses.replace(study, model="./nowhere"), study.arms[0])


def test_a_cell_depends_on_its_seed_alone(tiny_encoder, words):
    study = small_study(tiny_encoder, words, arms=(Arm("it", "lora", {"lora_dropout": 0.1}),))
    torch.manual_seed(123)
    first = one_cell(study, study.arms[0])
    torch.manual_seed(321)
    assert one_cell(study, study.arms[0]).loss == first.loss
    other = one_cell(dataclasses.replace(study, seeds=(5,)), study.arms[0])
    assert other.loss != first.loss
