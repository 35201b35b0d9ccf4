import gzip
import json

import pytest

from lrlora import InputError
from lrlora.data import GLUE, DataSource, load_task
from lrlora.data.embedded import EVALUATION_ROWS, TRAIN_ROWS
from lrlora.data.tasks import compute_metrics
from tests.conftest import write_rows

ROWS = [{"sentence": f"sentence {n}", "label": n % 2} for n in range(20)]


def test_the_embedded_sample(embedded_encoder):
    task = load_task(DataSource())
    assert (task.kind, len(task.labels), task.metrics) == ("classification", 5, ("accuracy", "macro_f1"))
    assert (len(task.train), len(task.evaluation)) == (TRAIN_ROWS, EVALUATION_ROWS)
    assert not set(task.train["text"]) & set(task.evaluation["text"])
    assert load_task(DataSource(seed=5)).train["text"] == task.train["text"]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, form):
    import pandas

    file = tmp_path / f"rows.{form}"
    if form == "csv":
        pandas.DataFrame(ROWS).to_csv(file, index=False)
    elif form == "parquet":
        pandas.DataFrame(ROWS).to_parquet(file)
    else:
        opened = gzip.open(file, "wt") if form.endswith("gz") else file.open("w")
        with opened as stream:
            stream.writelines(json.dumps(row) + "\n" for row in ROWS)
    task = load_task(DataSource(data=str(file)))
    assert (len(task.train), len(task.evaluation)) == (18, 2)
    texts = [*task.train["text"], *task.evaluation["text"]]
    assert sorted(texts) == sorted(row["sentence"] for row in ROWS)


def test_a_folder_of_several_tasks(tmp_path):
    for name in ("rte", "mrpc"):
        rows = [{"sentence1": f"{name} {n}", "sentence2": "b", "label": n % 2} for n in range(4)]
        write_rows(tmp_path / f"{name}_train.jsonl", rows)
        write_rows(tmp_path / f"{name}_dev.jsonl", rows[:2])
    task = load_task(DataSource(data=str(tmp_path), task="mrpc"))
    assert task.metrics == ("accuracy", "f1")
    assert task.train["text"][0] == "mrpc 0"
    assert len(task.evaluation) == 2
    with pytest.raises(InputError, match=r"exactly one training file .* pass task"):
        load_task(DataSource(data=str(tmp_path)))


def test_classes_by_name_and_scores(tmp_path):
    by_name = write_rows(tmp_path / "a.jsonl", [{"text": str(n), "label": "yes" if n % 2 else "no"} for n in range(12)])
    assert load_task(DataSource(data=str(by_name))).labels == ["no", "yes"]
    scores = write_rows(tmp_path / "b.jsonl", [{"text": str(n), "label": n / 3} for n in range(12)])
    task = load_task(DataSource(data=str(scores)))
    assert (task.kind, task.metrics) == ("regression", ("pearson", "spearman"))


def test_instructions(tmp_path):
    rows = [{"instruction": f"add {n}", "output": str(n), "input": None} for n in range(12)]
    task = load_task(DataSource(data=str(write_rows(tmp_path / "a.jsonl", rows))))
    assert task.kind == "causal"
    assert set(task.train[0]) == {"instruction", "input", "answer", "row"}


def test_fewer_rows_are_drawn_with_the_seed(tmp_path):
    file = str(write_rows(tmp_path / "a.jsonl", ROWS))
    drawn = [load_task(DataSource(data=file, train_rows=5, seed=s)).train["text"][:] for s in (0, 0, 1)]
    assert len(drawn[0]) == 5
    assert drawn[0] == drawn[1] != drawn[2]


def test_all_of_glue_has_columns_and_a_metric():
    assert set(GLUE) == {"cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"}
    for spec in GLUE.values():
        assert compute_metrics(spec.metrics, [0, 1, 1, 0], [0, 1, 1, 0]) == dict.fromkeys(spec.metrics, 1.0)


def test_a_correlation_with_constant_predictions_is_zero():
    assert compute_metrics(("pearson",), [1.0, 1.0], [0.0, 3.0]) == {"pearson": 0.0}


def test_more_than_two_classes_have_a_macro_f1_beside_the_metric_of_the_task(tmp_path):
    def metrics(labels, **fields):
        rows = [{"premise": f"a {n}", "hypothesis": "b", "label": labels[n % len(labels)]} for n in range(30)]
        return load_task(DataSource(str(write_rows(tmp_path / "a.jsonl", rows)), **fields)).metrics

    assert metrics("abc") == ("accuracy", "macro_f1")
    assert metrics("ab") == ("accuracy",)
    assert metrics("abc", task="mnli") == ("accuracy", "macro_f1")
    assert metrics([0.5, 1.5, 2.5]) == ("pearson", "spearman")


def test_a_macro_f1_is_the_mean_over_the_classes_that_occur():
    found = compute_metrics(("accuracy", "macro_f1"), [0, 0, 1, 1, 2, 0], [0, 0, 1, 2, 2, 2])
    # of class 0: 2 of 3 right, all found; of 1: 1 of 2, all found; of 2: all right, 1 of 3 found
    assert found == {"accuracy": 4 / 6, "macro_f1": pytest.approx((4 / 5 + 2 / 3 + 1 / 2) / 3)}
    # class 1 occurs nowhere, class 2 is only predicted, class 3 is never predicted
    assert compute_metrics(("macro_f1",), [0, 2], [0, 3])["macro_f1"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ([{"sentence": "a", "label": 0}, {"sentence": "b"}] * 6, r"rows.jsonl: row 2 of 12 has no 'label'"),
        ([{"sentence": "a"}] * 12, "no column 'label', got columns sentence; pass label_column"),
        ([{"words": "a", "label": 0}] * 12, "no column of text .* got columns words, label; pass text_columns"),
        ([{"sentence": "a", "label": -1}] * 12, "whole numbers from 0"),
        ([{"sentence": None if n else "a", "label": 1} for n in range(12)], "row 2 of 12 has no 'sentence'"),
        ([{"sentence": "a", "label": 0}] * 3, "at least 10"),
        ([{"instruction": "a", "output": None if n > 4 else "b"} for n in range(12)], "row 6 of 12 has no 'output'"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(tmp_path, rows, word):
    with pytest.raises(InputError, match=word):
        load_task(DataSource(data=str(write_rows(tmp_path / "rows.jsonl", rows))))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no such file or folder: \./nowhere"):
        load_task(DataSource(data="./nowhere.jsonl"))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"sentence": "a", "label"\n')
    with pytest.raises(InputError, match=r"cannot read .*broken.jsonl"):
        load_task(DataSource(data=str(broken)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no data file"):
        load_task(DataSource(data=str(tmp_path / "empty")))
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(InputError, match=r"needed \.jsonl"):
        load_task(DataSource(data=str(tmp_path / "notes.md")))
    with pytest.raises(InputError, match="neither a local file nor a readable hub dataset"):
        load_task(DataSource(data="someone/something"))


def test_evaluation_rows_that_are_trained_on_are_counted(tmp_path):
    held_out = write_rows(
        tmp_path / "held_out.jsonl",
        # of the same text, one of them with another label
        [ROWS[3], {"sentence": "new", "label": 0}, {**ROWS[5], "label": 0}],
    )
    train = write_rows(tmp_path / "train.jsonl", ROWS)
    (note,) = load_task(DataSource(str(train), eval_data=str(held_out))).notes
    assert note.startswith(f"2 of 3 evaluation rows are training rows as well, the first is row 1 of {held_out}: ")
    assert load_task(DataSource(str(train))).notes == ()
    # rows that are not used do not count
    assert load_task(DataSource(str(train), eval_data=str(held_out), train_rows=2, seed=1)).notes == ()


def test_chats_that_are_trained_on_are_counted(tmp_path):
    chats = [
        {"messages": [{"role": "user", "content": f"{n % 5}?"}, {"role": "assistant", "content": "Yes."}]}
        for n in range(20)
    ]
    (note,) = load_task(DataSource(str(write_rows(tmp_path / "chats.jsonl", chats)))).notes
    assert note.startswith("2 of 2 evaluation rows are training rows as well")
