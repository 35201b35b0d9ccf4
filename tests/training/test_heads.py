"""A base that has a head already knows its classes by name, and in an order of its own."""

import pytest

from lrlora.data import DataSource
from lrlora.training.heads import load_task_for
from tests.conftest import tiny_bert, write_rows


def base_with(folder, names) -> str:
    model = tiny_bert(len(names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def rows(tmp_path) -> DataSource:
    names = ("entailment", "neutral", "contradiction")
    data = [{"text": f"row {n}", "label": names[n % 3]} for n in range(30)]
    return DataSource(str(write_rows(tmp_path / "rows.jsonl", data)))


def test_classes_are_numbered_as_the_head_numbers_them(tmp_path, rows):
    base = base_with(tmp_path / "base", ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"])
    said = []
    task = load_task_for(base, rows, said.append)
    assert (task.labels, said) == (["contradiction", "neutral", "entailment"], [])
    named = {row["text"]: task.labels[row["label"]] for row in [*task.train, *task.evaluation]}
    assert named["row 0"] == "entailment" and named["row 2"] == "contradiction"


@pytest.mark.parametrize("names", [["a", "b", "c"], ["entailment", "neutral", "other"]])
def test_a_head_for_other_classes_is_said(tmp_path, rows, names):
    said = []
    task = load_task_for(base_with(tmp_path / "base", names), rows, said.append)
    assert task.labels == ["contradiction", "entailment", "neutral"]
    assert len(said) == 1 and f"was trained for the classes {', '.join(names)}" in said[0]


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1", "LABEL_2"], ["a", "b"]])
def test_a_head_without_names_or_of_another_width_says_nothing(tmp_path, rows, names):
    said = []
    task = load_task_for(base_with(tmp_path / "base", names), rows, said.append)
    assert (task.labels, said) == (["contradiction", "entailment", "neutral"], [])
