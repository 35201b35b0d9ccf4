import json

import pytest
import transformers
from transformers import AutoTokenizer

from lrlora import InputError
from lrlora.cli import main
from lrlora.data.commonsense import load_commonsense
from lrlora.evaluation.commonsense import score_commonsense
from lrlora.export.compare import compare, run_config
from lrlora.saved.load import load_adapter
from lrlora.saved.tokens import load_tokenizer
from lrlora.training import TrainConfig, train
from tests.conftest import write_rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_encoder):
    """A run folder of a few steps, and its result."""
    folder = tmp_path_factory.mktemp("trained")
    words = ("good", "bright", "kind", "warm"), ("bad", "dark", "cruel", "cold")
    rows = [
        {"sentence": f"a {word} day number {n}", "label": ("yes", "no")[label]}
        for n in range(6)
        for label, group in enumerate(words)
        for word in group
    ]
    write_rows(folder / "train.jsonl", rows[:36])
    write_rows(folder / "validation.jsonl", rows[36:])
    fields = {"max_steps": 12, "batch_size": 4, "r": 2, "learning_rate": 1e-2, "compare": False}
    config = TrainConfig.of(model=str(tiny_encoder), data=str(folder), out=str(folder / "run"), **fields)
    return folder, train(config)


def test_all_models_of_a_run_are_scored_as_the_run_was(trained):
    folder, result = trained
    adapter = str(folder / "run")
    found = compare(adapter, run_config(adapter), ("base", "adapter", "merged", "exported"))
    assert list(found.results) == ["base", "adapter", "merged", "exported"]
    assert found.metric == "accuracy" and found.rows == 12
    wanted = {key: result.metrics[key] for key in ("accuracy", "loss")}
    for name in ("adapter", "merged", "exported"):
        scores = found.results[name]
        assert scores["accuracy"] == wanted["accuracy"], name
        assert scores["loss"] == pytest.approx(wanted["loss"], rel=1e-3 if name == "exported" else 1e-5), name
    assert abs(found.results["base"]["loss"] - wanted["loss"]) > 1e-3


def test_the_names_of_the_classes_go_with_the_adapter(trained):
    folder, _ = trained
    assert json.loads((folder / "run" / "adapter" / "labels.json").read_text()) == ["no", "yes"]
    assert main(["merge", str(folder / "run"), "--out", str(folder / "merged")]) == 0
    assert json.loads((folder / "merged" / "config.json").read_text())["label2id"] == {"no": 0, "yes": 1}
    assert (folder / "merged" / "tokenizer.json").exists()


def test_a_model_is_scored_alone(trained, tmp_path, capsys):
    folder, result = trained
    merged = str(tmp_path / "merged")
    assert main(["merge", str(folder / "run"), "--out", merged]) == 0
    capsys.readouterr()
    assert main(["evaluate", merged, "--data", str(folder), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["results"]["model"]
    assert scores["accuracy"] == result.metrics["accuracy"]
    assert scores["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)
    assert main(["evaluate", merged]) == 2
    assert "pass --data" in capsys.readouterr().err
    rows = [{"sentence": f"a {n}", "label": ("a", "b", "c")[n % 3]} for n in range(12)]
    assert main(["evaluate", merged, "--data", str(write_rows(tmp_path / "three.jsonl", rows))]) == 2
    said = (
        "row 1 of 12 is of class 'a' (3 such classes), which is none of the classes that the model knows: 'no', 'yes'"
    )
    assert said in capsys.readouterr().err


def test_other_data_and_json(trained, tmp_path, capsys):
    folder, _ = trained
    rows = [{"sentence": f"a good {n}", "label": ("yes", "no")[n % 2]} for n in range(10)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "dev.jsonl", rows[:4])
    flags = ["--data", str(tmp_path), "--models", "adapter", "exported", "--rank", "1", "--json"]
    capsys.readouterr()
    assert main(["evaluate", str(folder / "run"), *flags]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found["results"]) == {"adapter", "exported"} and found["rows"] == 4
    assert "exported: " in err
    assert main(["evaluate", str(folder / "run"), "--models", "adapter"]) == 0
    assert "accuracy" in capsys.readouterr().out


def scored(capsys, *words: str) -> dict:
    """The JSON that `lrlora evaluate` prints."""
    capsys.readouterr()
    assert main(["evaluate", *words, "--models", "adapter", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_row_of_a_file_is_scored_by_the_names_of_its_classes(trained, tmp_path, capsys):
    folder, result = trained
    run = str(folder / "run")
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    file = str(write_rows(tmp_path / "all.jsonl", rows))
    found = scored(capsys, run, "--data", file)
    assert found["rows"] == len(rows) == 12
    assert found["results"]["adapter"]["accuracy"] == result.metrics["accuracy"]
    # what the adapter says does not depend on which of its classes the file has, or on the order of its rows
    by_class = {}
    for name in ("yes", "no"):
        part = [row for row in rows if row["label"] == name]
        found = scored(capsys, run, "--data", str(write_rows(tmp_path / f"{name}.jsonl", part)))
        by_class[name] = found["results"]["adapter"]["accuracy"] * len(part)
    assert sum(by_class.values()) == pytest.approx(12 * result.metrics["accuracy"])
    # a limit of the run's own rows is none for other rows, and a limit that is given is kept
    assert scored(capsys, run, "--data", file, "--eval_rows", "5")["rows"] == 5


def test_columns_of_other_names_can_be_given_to_evaluate(trained, tmp_path, capsys):
    folder, _ = trained
    rows = [{"words": f"a good {n}", "answer": ("yes", "no")[n % 2]} for n in range(10)]
    file = str(write_rows(tmp_path / "other.jsonl", rows))
    flags = ["--text_columns", "words", "--label_column", "answer"]
    for left_out in (0, 2):
        assert main(["evaluate", str(folder / "run"), "--data", file, *flags[left_out : left_out + 2]]) == 2
        assert f"pass {flags[2 - left_out][2:]}" in capsys.readouterr().err
    assert scored(capsys, str(folder / "run"), "--data", file, *flags)["rows"] == 10


def test_a_model_of_scores_measures_scores(tmp_path, tiny_encoder, capsys):
    rows = [{"sentence": f"a {n}", "label": n / 7} for n in range(24)]
    data = str(write_rows(tmp_path / "scores.jsonl", rows))
    fields = {"max_steps": 2, "batch_size": 4, "r": 2}
    train(TrainConfig.of(model=str(tiny_encoder), data=data, out=str(tmp_path / "run"), **fields))
    whole = str(write_rows(tmp_path / "whole.jsonl", [{**row, "label": n % 5} for n, row in enumerate(rows)]))
    found = scored(capsys, str(tmp_path / "run"), "--data", whole)
    assert (found["metric"], found["rows"]) == ("pearson", 24)
    assert main(["evaluate", str(tmp_path / "run"), "--data", whole, "--kind", "classification"]) == 2
    assert "is a model of regression, got --kind classification" in capsys.readouterr().err


def test_a_run_that_did_not_tell_its_split_is_measured_on_its_own_rows(tmp_path, tiny_encoder):
    rows = [{"sentence": f"a {n}", "label": n % 2} for n in range(40)]
    data = str(write_rows(tmp_path / "rows.jsonl", rows))
    config = TrainConfig.of(
        model=str(tiny_encoder), data=data, out=str(tmp_path / "run"), max_steps=1, seed=3, split_seed=3, r=2
    )
    train(config)
    described = tmp_path / "run" / "config.json"
    written = json.loads(described.read_text())
    del written["settings"]["split_seed"]
    described.write_text(json.dumps(written))
    assert run_config(str(tmp_path / "run")).split_seed == 3


def test_what_cannot_be_compared(trained, tmp_path, capsys):
    folder, _ = trained
    adapter = str(folder / "run")
    with pytest.raises(InputError, match="models must be some of base, adapter, merged, exported, got best"):
        compare(adapter, run_config(adapter), ("best",))
    rows = [{"sentence": str(n), "label": n % 3} for n in range(12)]
    with pytest.raises(InputError, match=r"is of class '0' .*'no', 'yes'; which number means which name is not known"):
        compare(adapter, run_config(adapter, data=str(write_rows(tmp_path / "three.jsonl", rows))))
    capsys.readouterr()
    elsewhere = tmp_path / "elsewhere"
    (folder / "run" / "adapter").rename(elsewhere)
    try:
        assert main(["evaluate", str(elsewhere)]) == 2
        assert "is not in a run folder" in capsys.readouterr().err
    finally:
        elsewhere.rename(folder / "run" / "adapter")


def test_a_decoder_is_scored_by_its_loss(tmp_path, tiny_decoder):
    rows = [{"instruction": f"count to {n}", "output": str(n)} for n in range(12)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    fields = {"max_steps": 2, "batch_size": 4, "r": 2}
    config = TrainConfig.of(model=str(tiny_decoder), data=str(data), out=str(tmp_path / "run"), **fields)
    result = train(config)
    found = compare(str(tmp_path / "run"), run_config(str(tmp_path / "run")))
    assert found.metric == "loss"
    for name in ("adapter", "merged"):
        assert found.results[name]["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)


def test_a_decoder_is_scored_on_commonsense_tasks(tmp_path, tiny_decoder, capsys):
    choices = ["no", "yes", "maybe", "never"]
    for task in ("obqa", "arc_c"):
        rows = [{"question": f"is {n} a number ?", "choices": choices, "label": n % 4} for n in range(12)]
        write_rows(tmp_path / f"{task}_test.jsonl", rows)
    made = load_commonsense(tmp_path, "obqa")
    write_rows(tmp_path / "mix_train.jsonl", [{k: row[k] for k in ("instruction", "output")} for row in made])
    fields = {"max_steps": 2, "batch_size": 4, "r": 2, "template": "plain", "task": "mix"}
    train(TrainConfig.of(model=str(tiny_decoder), data=str(tmp_path), out=str(tmp_path / "run"), **fields))
    run = str(tmp_path / "run")
    wanted = ["evaluate", run, "--commonsense", "obqa", "arc_c", "--eval_rows", "5", "--models", "adapter", "merged"]
    assert main([*wanted, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["metric"], found["rows"]) == ("obqa, arc_c", "accuracy", 10)
    adapter, merged = found["results"]["adapter"], found["results"]["merged"]
    model, tokenizer = load_adapter(run).eval(), load_tokenizer(str(tmp_path / "run" / "adapter"))
    by_hand = {
        task: score_commonsense(
            model, tokenizer, task, load_commonsense(tmp_path, task, 5), prompt="instruction", template="plain"
        )
        for task in ("obqa", "arc_c")
    }
    assert adapter["accuracy"] == sum(scores["acc"] for scores in by_hand.values()) / 2
    for task, scores in by_hand.items():
        assert adapter[f"{task} choice_loss"] == pytest.approx(scores["choice_loss"], abs=1e-5)
        assert merged[f"{task} choice_loss"] == pytest.approx(scores["choice_loss"], abs=1e-4)
    assert main(wanted) == 0
    assert "obqa acc" in capsys.readouterr().out
    assert main(["evaluate", run, "--commonsense", "arc"]) == 2
    assert "arc_c" in capsys.readouterr().err


def test_an_encoder_is_not_asked_commonsense_questions(trained, tmp_path, capsys):
    folder, _ = trained
    write_rows(tmp_path / "obqa_test.jsonl", [{"question": "is it ?", "choices": ["a", "b", "c", "d"], "label": 0}])
    assert main(["evaluate", str(folder / "run"), "--data", str(tmp_path), "--commonsense", "obqa"]) == 2
    assert "obqa needs a causal model" in capsys.readouterr().err


def test_a_model_whose_head_would_be_random_is_not_scored(tiny_encoder, tmp_path, capsys):
    rows = [{"sentence": f"day {number}", "label": str(number % 2)} for number in range(8)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    transformers.AutoModel.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path / "bare")
    assert main(["evaluate", str(tmp_path / "bare"), "--data", str(file)]) == 2
    assert "lacks classifier.bias (2 such tensors), which would be random" in capsys.readouterr().err
