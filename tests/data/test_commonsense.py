import gzip
import json

import pytest

from lrlora import InputError
from lrlora.data import DataSource, load_task
from lrlora.data.commonsense import COMMONSENSE, instruction_of, load_commonsense
from lrlora.data.commonsense_hub import HUB
from tests.conftest import BENCHMARK_DATA, write_rows

REAL = BENCHMARK_DATA / "commonsense"
QUESTION = {"question": "The sun is", "choices": ["hot", "cold", "wet", "sad"], "label": 0}
HUB_ROWS = {
    "boolq": ({"question": "is it hot", "answer": True}, ("is it hot?", 1)),
    "piqa": ({"goal": "cool it", "sol1": "blow", "sol2": "burn", "label": 0}, ("cool it", 0)),
    "siqa": (
        {"context": "Jo ran.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
        ("Jo ran. Why?", 2),
    ),
    "hellaswag": (
        {"activity_label": "Rowing", "ctx": "A man sits", "endings": ["a", "b", "c", "d"], "label": "1"},
        ("Rowing: A man sits", 1),
    ),
    "winogrande": ({"sentence": "The _ is big.", "option1": "a", "option2": "b", "answer": "2"}, ("The _ is big.", 1)),
    "arc_e": (
        {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": [*"ABC"]}, "answerKey": "B"}, ("Why?", 1)
    ),
    "arc_c": (
        {"question": "Why?", "choices": {"text": ["a", "b", "c"], "label": [*"123"]}, "answerKey": "3"}, ("Why?", 2)
    ),
    "obqa": (
        {"question_stem": "Rain is", "choices": {"text": ["a", "b", "c", "d"], "label": [*"ABCD"]}, "answerKey": "D"},
        ("Rain is", 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_rows_with_question_choices_and_label_get_their_prompt(tmp_path, suffix):
    file = tmp_path / f"obqa_test.{suffix}"
    opened = gzip.open(file, "wt") if suffix.endswith("gz") else file.open("w")
    with opened as stream:
        stream.write(json.dumps(QUESTION) + "\n")
    row = load_commonsense(tmp_path, "obqa")[0]
    assert row == load_commonsense(file, "obqa")[0]
    assert row["instruction"].startswith(
        "Please choose the correct answer to the question: The sun is\n\nAnswer1: hot "
    )
    assert row["instruction"].endswith("Answer4: sad\n\nAnswer format: answer1/answer2/answer3/answer4")
    assert (row["output"], row["answer"]) == ("the correct answer is answer1", "answer1")
    assert (row["task"], row["idx"]) == ("obqa", 0)


def test_every_task_names_its_answers():
    assert {task: spec.answers()[-1] for task, spec in COMMONSENSE.items()} == {
        "boolq": "true",
        "piqa": "solution2",
        "siqa": "answer3",
        "hellaswag": "ending4",
        "winogrande": "option2",
        "arc_e": "answer5",
        "arc_c": "answer5",
        "obqa": "answer4",
    }
    three = instruction_of("arc_c", "Why?", ["a", "b", "c"])
    assert three.endswith("Answer3: c\n\nAnswer format: answer1/answer2/answer3")
    solutions = instruction_of("piqa", "Cool it.", ["blow", "burn"])
    assert solutions.endswith("Cool it.\n\nSolution1: blow\n\nSolution2: burn\n\nAnswer format: solution1/solution2")
    ending = instruction_of("hellaswag", "Rowing: A man", ["a", "b", "c", "d"])
    assert ending.startswith(
        "Please choose the correct ending to complete the given sentence: Rowing: A man\n\nEnding1: a"
    )


def test_a_subset_is_the_same_every_time_and_keeps_the_order(tmp_path):
    write_rows(tmp_path / "obqa_test.jsonl", [{**QUESTION, "idx": n} for n in range(50)])
    drawn = [[row["idx"] for row in load_commonsense(tmp_path, "obqa", rows=9, seed=s)] for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] == sorted(drawn[0]) != drawn[2]
    assert len(load_commonsense(tmp_path, "obqa", rows=99)) == 50


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": " "}, r"obqa_test.jsonl: row 2 has no 'question'"),
        ({"choices": "hot"}, r"row 2 needs 'choices', a list of texts, got 'hot'"),
        ({"choices": ["a", "b"]}, r"row 2 has 2 choices, OBQA has 4"),
        ({"label": 4}, r"row 2 needs 'label', the number of the right choice from 0 to 3, got 4"),
        ({"label": True}, r"row 2 needs 'label'.*got True"),
        ({"answer": "answer2"}, r"row 2 has the answer 'answer2', but its label 0 means 'answer1'"),
        ({"task": "arc_c"}, r"row 2 is of task 'arc_c', needed 'obqa'"),
        ({"task": "rte"}, r"row 2 is of task 'rte', needed one of: boolq, "),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, change, words):
    write_rows(tmp_path / "obqa_test.jsonl", [QUESTION, {**QUESTION, **change}])
    with pytest.raises(InputError, match=words):
        load_commonsense(tmp_path, "obqa")


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no such file or folder: .*nowhere"):
        load_commonsense(tmp_path / "nowhere", "obqa")
    write_rows(tmp_path / "obqa_test.jsonl", [QUESTION])
    with pytest.raises(InputError, match=r"has no piqa_test.jsonl\(.gz\); it has test rows of: obqa"):
        load_commonsense(tmp_path, "piqa")
    with pytest.raises(InputError, match="rows must be at least 1, got 0"):
        load_commonsense(tmp_path, "obqa", rows=0)
    (tmp_path / "arc_c_test.jsonl").write_text(json.dumps(QUESTION) + "\n{'question'\n")
    with pytest.raises(InputError, match=r"cannot read .*arc_c_test.jsonl as JSON: row 2"):
        load_commonsense(tmp_path, "arc_c")
    (tmp_path / "arc_e_test.jsonl.gz").write_bytes(gzip.compress(json.dumps(QUESTION).encode() * 500)[:40])
    with pytest.raises(InputError, match=r"cannot read .*arc_e_test.jsonl.gz: .*copy it again"):
        load_commonsense(tmp_path, "arc_e")
    (tmp_path / "siqa_test.jsonl").write_text("")
    with pytest.raises(InputError, match=r"siqa_test.jsonl has no rows"):
        load_commonsense(tmp_path, "siqa")


def test_a_mixture_names_the_task_of_every_row(tmp_path):
    rows = [
        {"task": "obqa", **QUESTION},
        {"task": "boolq", "question": "hot?", "choices": ["false", "true"], "label": 1},
    ]
    write_rows(tmp_path / "mix_train.jsonl", rows)
    loaded = load_commonsense(tmp_path, "mix", split="train")
    assert [row["answer"] for row in loaded] == ["answer1", "true"]
    write_rows(tmp_path / "mix_train.jsonl", [QUESTION])
    with pytest.raises(InputError, match="row 1 is of task 'mix', needed one of"):
        load_commonsense(tmp_path, "mix", split="train")


def test_a_mixture_in_a_folder_is_instruction_data(tmp_path):
    write_rows(tmp_path / "obqa_train.jsonl", [QUESTION] * 12)
    loaded = load_commonsense(tmp_path, "obqa", split="train")
    write_rows(tmp_path / "mix15k_train.jsonl", loaded)
    for source in (
        DataSource(data=str(tmp_path), task="mix15k"),
        DataSource(data=str(tmp_path / "mix15k_train.jsonl")),
    ):
        task = load_task(source)
        assert task.kind == "causal"
        row = {name: task.train[0][name] for name in ("instruction", "input", "answer")}
        assert row == {"instruction": loaded[0]["instruction"], "input": "", "answer": loaded[0]["output"]}


@pytest.mark.parametrize("task", list(COMMONSENSE))
def test_rows_as_the_hub_keeps_them(task, monkeypatch):
    row, (question, label) = HUB_ROWS[task]
    asked = {}

    def load(path, subset, split):
        asked.update(path=path, subset=subset, split=split)
        return [row]

    monkeypatch.setattr("datasets.load_dataset", load)
    loaded = load_commonsense("hub", task)[0]
    assert (loaded["question"], loaded["label"]) == (question, label)
    assert loaded["instruction"] == instruction_of(task, question, loaded["choices"])
    assert asked == {"path": HUB[task].path, "subset": HUB[task].subset, "split": HUB[task].test_split}


def test_a_hub_that_cannot_be_reached_is_one_line():
    with pytest.raises(InputError, match=r"cannot read allenai/openbookqa \(test\) from the hub: "):
        load_commonsense("hub", "obqa")
    with pytest.raises(InputError, match="no commonsense task 'mix15k'"):
        load_commonsense("hub", "mix15k")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real data in {REAL}")
def test_our_prompts_are_those_of_the_published_data():
    files = sorted(REAL.glob("*_*.jsonl.gz"))
    assert files
    for file in files:
        task, split = file.name.split(".")[0].rsplit("_", 1)
        for row in load_commonsense(REAL, task, split=split):
            ours = instruction_of(row["task"], row["question"], row["choices"])
            assert ours.split() == row["instruction"].split(), (file.name, row["idx"])
            assert row["output"] == f"the correct answer is {row['answer']}"
