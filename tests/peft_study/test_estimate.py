"""--dry_run: sizes from the data or assumed, and estimates without weights or hub."""

import dataclasses
from pathlib import Path

import pytest

from lrlora import InputError
from lrlora.cli.main import main
from peft_study import read_study
from peft_study.estimate import Sizes, estimates
from peft_study.methods import METHODS
from tests.conftest import write_rows
from tests.peft_study.conftest import GOOD

STUDIES = Path(__file__).parents[2] / "studies"
SOME = ("full", "lora", "vera", "lrlora-sinc")


def test_a_dry_run_reads_classes_and_rows_where_the_data_are(tmp_path, capsys):
    config = "{model_type: bert, vocab_size: 64, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"
    head = GOOD.replace("data: glue}", f"data: {tmp_path}, kind: classification, train_rows: 900, validation_rows: 6}}")
    (tmp_path / "study.yaml").write_text(f"{head}model_config: {config}\n")
    rows = [{"sentence1": "a", "sentence2": f"{n}", "label": n % 5} for n in range(30)]
    write_rows(tmp_path / "rte_train.jsonl", rows)
    write_rows(tmp_path / "rte_dev.jsonl", rows)
    lora = estimates(read_study(tmp_path / "study.yaml"))[0]
    assert lora.sizes == Sizes(train_rows=24, classes=5, is_assumed=False)
    assert lora.steps == 4  # two epochs of two batches
    assert main(["study", str(tmp_path / "study.yaml"), "--dry_run"]) == 0
    shown = capsys.readouterr()
    assert "rte: ESTIMATES, nothing was run; 24 rows to train on, 5 classes" in " ".join(shown.out.split())
    assert "warning: rte: train_rows asks for 900, and there are 24\n" in shown.err
    # the head of five classes is counted: 33 numbers each
    (tmp_path / "study.yaml").write_text(f"{GOOD}model_config: {config}\n")
    other = estimates(read_study(tmp_path / "study.yaml"))[0]
    assert lora.total_parameters - other.total_parameters == 2 * 3 * 33
    assert other.sizes == Sizes(train_rows=2241, classes=2, is_assumed=True)
    assert main(["study", str(tmp_path / "study.yaml"), "--dry_run"]) == 0
    shown = capsys.readouterr()
    assert "2 classes (assumed: the data are not here)" in " ".join(shown.out.split())


@pytest.mark.parametrize("file", sorted(STUDIES.glob("full-*.yaml")), ids=lambda f: f.stem)
def test_a_dry_run_of_the_full_recipes_needs_neither_weights_nor_hub(file):
    study = read_study(file)
    assert {arm.method for arm in study.arms} == set(METHODS)
    # every arm of one recipe, four of the others: building them takes a while
    arms = study.arms if "roberta-base" in file.stem else [a for a in study.arms if a.name in SOME]
    found = estimates(dataclasses.replace(study, tasks=study.tasks[:1], arms=tuple(arms)))
    by_arm = {each.arm: each for each in found}
    lora, full = by_arm["lora"], by_arm["full"]
    assert full.trainable_parameters == full.total_parameters > 50 * lora.trainable_parameters
    # c: 10 numbers per layer and the middle one that has no effect
    extra = by_arm["lrlora-sinc"].trainable_parameters - lora.trainable_parameters
    assert 0 < extra < 11 * 300
    assert extra % 11 == 0
    assert all(each.hours_of_a_cell and each.memory_bytes > 4 * each.total_parameters for each in found)
    assert by_arm["vera"].shown()[-1] == "not measured"
    assert by_arm["vera"].shown()[-3].startswith("> ")


def test_a_dry_run_that_cannot_know_the_model_says_what_to_give(tmp_path):
    (tmp_path / "study.yaml").write_text(GOOD + "model: nobody/nothing\n")
    with pytest.raises(InputError, match="give the study a model_config"):
        estimates(read_study(tmp_path / "study.yaml"))
