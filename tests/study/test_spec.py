import dataclasses
from pathlib import Path

import pytest

from lrlora import InputError
from lrlora.study import read_study
from lrlora.study.arms import METHODS
from lrlora.study.estimate import estimates
from lrlora.study.plan import with_root

STUDIES = Path(__file__).parents[2] / "studies"
SOME = ("full", "lora", "vera", "lrlora-sinc")
GOOD = """\
study: mine
learning_rates: [1e-3, 2e-3]
seeds: [0, 1, 2]
tasks:
  - {name: rte, data: glue}
arms:
  - {name: lora, method: lora, r: 4}
  - name: ours
    method: lrlora
    tau: auto
    learning_rates: [5e-4, 1e-3]
"""


def refused(tmp_path, text: str) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_study(file)
    return str(caught.value)


def test_a_study_is_read(tmp_path):
    (tmp_path / "study.yaml").write_text(GOOD)
    study = read_study(tmp_path / "study.yaml")
    assert study.learning_rates == (1e-3, 2e-3)
    assert study.rates_of(study.arms[1]) == (5e-4, 1e-3)
    assert study.arms[0].fields == {"r": 4}
    assert study.reference_arm() == "lora"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("study: mine", "study: mine\nlerning_rate: 3", "line 2: unknown key 'lerning_rate' in the study"),
        ("data: glue}", "data: glue, row: 3}", "line 5: unknown key 'row' in task 'rte'"),
        ("r: 4}", "rank: 4}", "line 7: arm 'lora': unknown field 'rank'"),
        ("r: 4}", "r: 4, target_modules: [query]}", "target_modules is the same for every arm"),
        ("method: lora,", "method: lorra,", "no method 'lorra'"),
        ("tau: auto", "tau: never", "arm 'ours': tau must be a number above 0"),
        ("tau: auto", "tau: auto\n    tau: 0.1", "line 11: 'tau' stands twice"),
        ("[5e-4, 1e-3]", "[5e-4]", "arm 'ours' has 1 learning rates and the study 2: every arm gets the same budget"),
        ("[5e-4, 1e-3]", "[5e-4, 5e-4]", "twice"),
        ("[5e-4, 1e-3]", "[5e-4, -1]", "must be above 0"),
        ("seeds: [0, 1, 2]", "seeds: [0, one]", "line 3: 'seeds' of the study must be a whole number, got 'one'"),
        ("seeds: [0, 1, 2]\n", "", "the study needs the key 'seeds'"),
        ("name: ours", "name: lora", "arms holds 'lora' twice"),
        ("data: glue}", "data: glue, batch_size: 0}", "batch_size must be at least 1, got 0"),
        ("    tau: auto", "    c_lr_factor: 0", "c_lr_factor must be above 0"),
        ("r: 4}", "r: 4, c_lr_factor: 2}", "c_lr_factor is for method lrlora"),
        ("study: mine", "study: [", "is not YAML"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_line(tmp_path, old, new, said):
    assert old in GOOD
    message = refused(tmp_path, GOOD.replace(old, new))
    assert said in message
    assert "study.yaml" in message


def test_data_must_be_named_somewhere(tmp_path):
    (tmp_path / "study.yaml").write_text(GOOD.replace(", data: glue", ""))
    study = read_study(tmp_path / "study.yaml")
    with pytest.raises(InputError, match="--data_root FOLDER"):
        study.data_of(study.tasks[0])
    assert with_root(study, str(tmp_path)).data_of(study.tasks[0]) == str(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        with_root(study, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda f: f.stem)
def test_the_studies_of_this_project_can_be_read(file):
    study = read_study(file)
    assert file.stem == study.study
    assert {len(study.rates_of(arm)) for arm in study.arms} == {len(study.learning_rates)}
    assert len(study.seeds) >= 3
    was_not_run = file.stem.startswith("full-")
    assert ("NOT RUN" in file.read_text()) == ("not run" in study.note) == was_not_run


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
