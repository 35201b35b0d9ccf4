"""predictions.jsonl is read as it was written, or refused by its line."""

import json

import pytest

from lrlora.errors import InputError
from lrlora.files import write_json
from lrlora.saved.predictions import Prediction, read_predictions
from lrlora.saved.run import RunFolder

ROW = {"row": 3, "file": None, "true": "a\u2028b", "predicted": "ü", "confidence": 0.75}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "adapter").mkdir()
    write_json(tmp_path / "adapter" / "labels.json", ["ü", "a\u2028b"])
    RunFolder(tmp_path).save_predictions([ROW, {**ROW, "file": "/x/1.png", "predicted": "a\u2028b"}])
    return RunFolder(tmp_path)


def test_what_was_written_is_read(run):
    found = read_predictions(run.path, run.adapter)
    assert found is not None and found.classes == ["ü", "a\u2028b"]
    assert found.rows[0] == Prediction(3, None, "a\u2028b", "ü", 0.75)
    assert [row.is_right for row in found.rows] == [False, True]
    assert read_predictions(run.path / "nowhere", run.adapter) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ('{"row": 3', "line 1, is no prediction"),
        (json.dumps(ROW) + "\n[1]", "line 2, is no prediction"),
        (json.dumps({**ROW, "more": 1}), "line 1, is no prediction"),
        (json.dumps({**ROW, "confidence": None}), "no names of classes or no confidence"),
        (json.dumps({**ROW, "predicted": "c"}), "the class 'c', which is not in"),
    ],
)
def test_what_is_no_prediction_is_refused(run, text, said):
    (run.path / "predictions.jsonl").write_text(text)
    with pytest.raises(InputError, match=said):
        read_predictions(run.path, run.adapter)


def test_without_the_names_of_the_classes_it_is_refused(run):
    (run.adapter / "labels.json").unlink()
    with pytest.raises(InputError, match=r"labels\.json, which is missing"):
        read_predictions(run.path, run.adapter)
