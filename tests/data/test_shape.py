"""Names decide what a class is, never positions or the alphabet; what is no label and no text is named by its row."""

import datasets
import numpy
import pytest

from lrlora import InputError
from lrlora.data import DataSource, load_evaluation, load_task
from lrlora.evaluation.score import metrics_of
from tests.conftest import write_rows


def rows_of(names, count: int = 20, **more) -> list[dict]:
    return [{"text": f"row {n}", "label": names[n % len(names)], **more} for n in range(count)]


def parquet(path, names: list[str], rows: list[dict]) -> None:
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=names))
    numbered = [{**row, "label": names.index(row["label"])} for row in rows]
    datasets.Dataset.from_list(numbered, features=features).to_parquet(path)


def load(data, **fields):
    return load_task(DataSource(str(data), **fields))


def labels_by_text(task) -> dict[str, str]:
    """The name of the class of every row, through the numbers that a model is trained and scored on."""
    rows = [*task.train, *task.evaluation]
    return {row["text"]: task.labels[row["label"]] for row in rows}


def test_files_that_order_their_classes_otherwise_agree_by_name(tmp_path):
    rows = rows_of(["neg", "pos"])
    parquet(tmp_path / "train.parquet", ["pos", "neg"], rows)
    parquet(tmp_path / "validation.parquet", ["neg", "pos"], rows)
    task = load(tmp_path)
    assert task.labels == ["pos", "neg"]
    assert labels_by_text(task) == {row["text"]: row["label"] for row in rows}
    (tmp_path / "validation.parquet").unlink()
    write_rows(tmp_path / "validation.jsonl", rows)
    assert labels_by_text(load(tmp_path)) == {row["text"]: row["label"] for row in rows}


@pytest.mark.parametrize(
    ("train", "evaluation", "said"),
    [
        (["neg", "pos"], ["neg ", "pos"], r"row 1 of 20 is of class 'neg ', .* did you mean 'neg'\?"),
        (["neg", "pos"], ["Neg", "pos"], r"did you mean 'neg'\?"),
        ([0, 1], ["neg", "pos"], r"train.jsonl: '0', '1'; which number means which name is not known"),
        (["neg", "pos"], [0, 1], r"which number means which name is not known"),
        ([0, 1], [0, 1, 2], r"row 3 of 20 is of class '2', which is none of the classes of .*train.jsonl: '0', '1'"),
    ],
)
def test_a_class_that_the_evaluation_file_alone_has_is_refused(tmp_path, train, evaluation, said):
    write_rows(tmp_path / "train.jsonl", rows_of(train))
    write_rows(tmp_path / "validation.jsonl", rows_of(evaluation))
    with pytest.raises(InputError, match=said):
        load(tmp_path)


def test_a_number_is_the_name_of_its_class(tmp_path):
    assert load(write_rows(tmp_path / "a.jsonl", rows_of([94103, 10001]))).labels == ["10001", "94103"]
    assert load(write_rows(tmp_path / "b.jsonl", rows_of([10, 9, 1.0]))).labels == ["1", "9", "10"]
    assert load(write_rows(tmp_path / "c.jsonl", rows_of([True, False]))).labels == ["false", "true"]
    write_rows(tmp_path / "train.jsonl", rows_of([0, 1]))
    write_rows(tmp_path / "dev.jsonl", rows_of(["1", "0"]))
    assert labels_by_text(load(tmp_path))["row 0"] == "1"


def test_names_are_gathered_before_rows_are_left_out(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", rows_of([f"intent {n}" for n in range(70)], 700))
    task = load(file, train_rows=64, eval_rows=10)
    assert (len(task.labels), len(task.train), len(task.evaluation)) == (70, 64, 10)
    assert any(note.startswith("no training row is of") for note in task.notes)


def test_the_positive_class_of_glue_is_found_by_name(tmp_path):
    pairs = [
        {"sentence1": f"a {n}", "sentence2": "b", "label": ("equivalent", "not_equivalent")[n % 2]} for n in range(20)
    ]
    task = load(write_rows(tmp_path / "mrpc.jsonl", pairs), task="mrpc")
    right = numpy.array([task.labels.index(name) for name in ("equivalent", "not_equivalent", "not_equivalent")])
    wrong = numpy.array([task.labels.index(name) for name in ("equivalent", "not_equivalent", "equivalent")])
    # of the class "equivalent": precision 1/2, recall 1
    assert metrics_of(task, numpy.eye(2)[wrong], right)["f1"] == pytest.approx(2 / 3)
    for pair in pairs:
        pair["label"] = {"equivalent": "same", "not_equivalent": "other"}[pair["label"]]
    with pytest.raises(
        InputError, match=r"F1 of mrpc is about the class 'equivalent' \(or 1\), got the classes other, same"
    ):
        load(write_rows(tmp_path / "mrpc.jsonl", pairs), task="mrpc")


def test_one_class_or_one_score_alone_is_nothing_to_learn(tmp_path):
    for label in ("pos", 0):
        with pytest.raises(InputError, match=rf"all 18 training rows have the label '{label}'"):
            load(write_rows(tmp_path / "a.jsonl", rows_of([label])))
    with pytest.raises(InputError, match=r"the label 0.5: there is nothing"):
        load(write_rows(tmp_path / "a.jsonl", rows_of([0.5])))
    # a sorted file of which the head is used
    rows = [*rows_of(["neg"], 50), *rows_of(["pos"], 1)]
    with pytest.raises(InputError, match="all 5 training rows have the label 'neg'"):
        load(write_rows(tmp_path / "a.jsonl", rows), train_rows=5)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("form", ["{},{}", "{}.{}"])
def test_scores_that_are_text_are_no_names(tmp_path, ending, form):
    rows = rows_of([form.format(n % 5, n) for n in range(1, 10)])
    if ending == "csv" and form == "{}.{}":
        datasets.Dataset.from_list(rows).to_csv(tmp_path / "a.csv")
        assert load(tmp_path / "a.csv").kind == "regression"
        return
    if ending == "csv":
        datasets.Dataset.from_list(rows).to_csv(tmp_path / "a.csv")
    else:
        write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match=r"row 1 of 20 has the label '1[.,]1' in a column of scores; write scores"):
        load(tmp_path / f"a.{ending}")
    assert len(load(tmp_path / f"a.{ending}", kind="classification").labels) == 9


def test_a_score_that_is_none_is_named_by_its_row(tmp_path):
    rows = rows_of([n / 7 for n in range(20)])
    for bad in ("n/a", True, float("inf")):
        rows[12]["label"] = bad
        with pytest.raises(InputError, match=r"row 13 of 20 has 'label' = .*, needed a number such as 3.5"):
            load(write_rows(tmp_path / "a.jsonl", rows), kind="regression")
    text = "text,label\n" + "".join(f"row {n},{n / 7 if n != 12 else 'n/a'}\n" for n in range(20))
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=r"row 13 of 20 has the label 'n/a' in a column of scores"):
        load(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": ["a", "b"]}, "row 5 of 20 has a list in 'text', needed a text"),
        ({"text": None}, "row 5 of 20 has no 'text'"),
        ({"text": 1.5}, "row 5 of 20 has a float in 'text', needed a text"),
        ({"text": {"en": "a"}}, "row 5 of 20 has a dict in 'text'"),
        ({"label": [0, 1]}, "row 5 of 20 has a list in 'label', .* one label a row"),
        ({"label": None}, "row 5 of 20 has no 'label'"),
        ({"label": -1}, r"row 5 of 20 has the label -1; .* \(-1 marks a row without a label on the hub\)"),
        ({"label": 0.5}, "row 5 of 20 has the label 0.5; classes must be names or whole numbers"),
    ],
)
def test_a_row_is_named_as_it_is_counted_in_the_file(tmp_path, change, said):
    rows = rows_of([0, 1])
    rows[4] |= change
    with pytest.raises(InputError, match=said):
        load(write_rows(tmp_path / "a.jsonl", rows), kind="classification")


def test_rows_that_the_hub_marks_as_without_a_label(tmp_path):
    parquet(tmp_path / "train.parquet", ["neg", "pos"], rows_of(["neg", "pos"]))
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))
    datasets.Dataset.from_list(rows_of([-1]), features=features).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"test.parquet: row 1 of 20 has no 'label'"):
        load(tmp_path)


def test_whole_numbers_are_read_as_text_and_that_is_said(tmp_path):
    rows = [{"instruction": f"add {n} and 1", "input": n, "output": n + 1} for n in range(12)]
    task = load(write_rows(tmp_path / "sums.jsonl", rows))
    assert {(row["input"], row["answer"]) for row in [*task.train, *task.evaluation]} == {
        (str(n), str(n + 1)) for n in range(12)
    }
    assert [note.split(": ")[1] for note in task.notes] == [
        "whole numbers in 'input' are read as text",
        "whole numbers in 'output' are read as text",
    ]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"00{n},{n % 2}\n" for n in range(12)))
    assert sorted(load(tmp_path / "a.csv").train["text"])[0] == "000"


def test_a_file_of_several_candidates_says_what_is_read(tmp_path):
    rows = [{**row, "sentence": f"other {row['text']}"} for row in rows_of([0, 1])]
    task = load(write_rows(tmp_path / "a.jsonl", rows))
    assert task.notes == (
        f"{tmp_path / 'a.jsonl'}: read as text: sentence; not read: text; text_columns chooses others",
    )
    (tmp_path / "a.csv").write_text("text;label\na;1\n")
    with pytest.raises(InputError, match=r"its columns seem to be separated by ';', needed commas"):
        load(tmp_path / "a.csv")


def test_the_split_has_a_seed_of_its_own_and_evaluation_rows_can_be_given(tmp_path):
    file = write_rows(tmp_path / "a.jsonl", rows_of([0, 1], 40))
    held_out = [set(load(file, seed=seed).evaluation["text"]) for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]
    other = write_rows(tmp_path / "b.jsonl", rows_of([1, 0], 30))
    task = load(file, eval_data=str(other))
    assert (len(task.train), len(task.evaluation)) == (40, 30)
    assert task.files == (str(file), str(other))


def test_two_files_of_one_role_are_refused(tmp_path):
    for name in ("train.jsonl", "dev.jsonl", "dev.json"):
        write_rows(tmp_path / name, rows_of([0, 1]))
    with pytest.raises(InputError, match=r"has the evaluation rows 2 times: dev.json, dev.jsonl"):
        load(tmp_path)
    write_rows(tmp_path / "train.json", rows_of([0, 1]))
    (tmp_path / "dev.json").unlink()
    with pytest.raises(InputError, match=r"exactly one training file .* got dev.jsonl, train.json, train.jsonl"):
        load(tmp_path)


def test_a_trained_model_s_classes_are_met_by_name(tmp_path):
    file = DataSource(str(write_rows(tmp_path / "a.jsonl", rows_of(["pos"]))))
    task = load_evaluation(file, "classification", ["neg", "pos"])
    assert (set(task.evaluation["label"]), len(task.evaluation), len(task.train)) == ({1}, 20, 0)
    with pytest.raises(InputError, match=r"which is none of the classes that the model knows: 'a', 'b'"):
        load_evaluation(file, "classification", ["a", "b"])
    write_rows(tmp_path / "a.jsonl", rows_of([1]))
    assert load_evaluation(file, "classification", ["0", "1", "2"]).evaluation["label"][0] == 1
    assert load_evaluation(file, "regression", None).metrics == ("pearson", "spearman")
