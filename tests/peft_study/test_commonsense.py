"""A study of commonsense tasks: trained on a mixture, tuned on held-out answers, measured on the tasks' own rows."""

import sys

import pytest

from lrlora import InputError
from lrlora.cli.main import main
from lrlora.data.commonsense import load_commonsense
from lrlora.evaluation import commonsense
from peft_study.cell import Bench
from peft_study.plan import digests_of, final_cells, search_cells
from peft_study.spec import Task
from tests.conftest import write_rows
from tests.peft_study.conftest import small_study


def rows(task: str, many: int) -> list[dict]:
    """Questions with four choices."""
    choices = ["no", "yes", "maybe", "never"]
    return [
        {"task": task, "idx": n, "question": f"is {n} a number ?", "choices": choices, "label": n % 4}
        for n in range(many)
    ]


@pytest.fixture
def folder(tmp_path):
    """A mixture to train on, and the test rows of two tasks."""
    write_rows(tmp_path / "obqa_test.jsonl", rows("obqa", 6))
    write_rows(tmp_path / "arc_c_test.jsonl", rows("arc_c", 8))
    write_rows(tmp_path / "one_test.jsonl", rows("obqa", 24))
    made = load_commonsense(tmp_path / "one_test.jsonl", "obqa")
    write_rows(tmp_path / "mix_train.jsonl", [{k: row[k] for k in ("instruction", "output")} for row in made])
    return tmp_path


def study_of(model, folder, **fields):
    task = Task(
        "mix", data="mix_train.jsonl", kind="causal", validation_rows=4, max_steps=2, batch_size=4, max_length=64,
        commonsense=("obqa", "arc_c"), commonsense_rows=5, template="plain", **fields,
    )  # fmt: skip
    return small_study(model, folder, tasks=(task,), data_root=str(folder), target_modules=("q_proj",))


def test_the_search_sees_answers_and_the_result_is_the_mean_accuracy(tiny_decoder, folder, monkeypatch):
    study = study_of(tiny_decoder, folder)
    digests, task = digests_of(study), study.tasks[0]
    bench = Bench(study)
    scored = []
    real = commonsense.score_likelihood
    monkeypatch.setattr(
        commonsense, "score_likelihood", lambda *a, **k: scored.append((a[2], len(a[3]))) or real(*a, **k)
    )
    searched = bench.run(search_cells(study, digests, study.arms[0], task)[0])
    assert (searched.status, searched.metric, scored) == ("done", "loss", []), searched.reason
    final = bench.run(final_cells(study, digests, study.arms[1], task, 1e-3)[0])
    assert (final.status, final.metric) == ("done", "accuracy"), final.reason
    assert scored == [("obqa", 5), ("arc_c", 5)]
    accuracies = [final.metrics[f"{name} acc"] for name in ("obqa", "arc_c")]
    assert final.value == pytest.approx(sum(accuracies) / 2)
    assert final.metrics["loss"] > 0


def test_other_test_rows_are_another_result_but_the_same_search(tiny_decoder, folder):
    def identities(**fields):
        study = study_of(tiny_decoder, folder, **fields)
        digests, arm, task = digests_of(study), study.arms[0], study.tasks[0]
        return (
            search_cells(study, digests, arm, task)[0].fingerprint,
            final_cells(study, digests, arm, task, 1e-3)[0].fingerprint,
        )

    search, final = identities()
    assert identities(how="generation") == (search, identities(how="generation")[1])
    assert identities(how="generation")[1] != final
    write_rows(folder / "obqa_test.jsonl", rows("obqa", 3))
    assert identities()[0] == search
    assert identities()[1] != final


def test_what_cannot_be_is_refused(tiny_decoder, folder):
    with pytest.raises(InputError, match=r"no commonsense task 'arc'; there are: .*arc_c"):
        Task("mix", commonsense=("arc",))
    task = Task("mix", data=str(folder / "mix_train.jsonl"), kind="causal", validation_rows=4, commonsense=("obqa",))
    with pytest.raises(InputError, match="pass --data_root FOLDER, or give the task commonsense_data"):
        digests_of(small_study(tiny_decoder, folder, tasks=(task,)))


def test_lm_eval_is_asked_for_by_commonsense_alone(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as where it is not installed
    head = "study: s\nlearning_rates: [1e-3]\nseeds: [0]\narms: [{name: lora, method: lora}]\n"
    mix = f"{{name: mix, data: {folder / 'mix_train.jsonl'}, kind: causal, commonsense: [obqa]}}"
    file = tmp_path / "study.yaml"
    file.write_text(f"{head}model: nowhere\ntasks: [{mix}]\n")
    assert main(["study", str(file), "--out", str(tmp_path / "out"), "--data_root", str(folder)]) == 2
    assert 'lrlora study needs lm_eval, which is not installed: pip install "lrlora[study]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    file.write_text(f"{head}model: {tmp_path / 'nowhere'}\ntasks: [{{name: d, kind: facts, facts: 4}}]\n")
    assert main(["study", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "lrlora study needs" not in capsys.readouterr().err
