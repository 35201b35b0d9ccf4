import dataclasses
import os
from pathlib import Path

from lrlora.data import DataSource, load_task
from lrlora.saved.identity import digest_of_model, digest_of_rows
from tests.conftest import write_rows


def test_a_weight_in_the_middle_of_a_file_is_part_of_what_a_model_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(5 << 20))
    before, stamp = digest_of_model(str(tmp_path)), weights.stat()
    with weights.open("r+b") as file:
        file.seek(5 << 19)
        file.write(b"x")
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert digest_of_model(str(tmp_path)) != before


def test_what_lies_beside_a_model_is_not(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = digest_of_model(str(tmp_path))
    (tmp_path / "notes.md").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    assert digest_of_model(str(tmp_path)) == before


def test_a_name_of_the_hub_that_is_not_in_the_cache_is_its_own_identity():
    assert digest_of_model("nobody/nothing") == "nobody/nothing"


def _digest(file: Path) -> str:
    return digest_of_rows(load_task(DataSource(str(file))))


def test_any_other_row_is_another_identity_and_another_place_is_not(tmp_path):
    rows = [{"text": f"row {n}", "label": n % 2} for n in range(20)]
    first = _digest(write_rows(tmp_path / "a.jsonl", rows))
    assert _digest(write_rows(tmp_path / "b.jsonl", rows)) == first
    rows[7]["text"] = "another"
    assert _digest(write_rows(tmp_path / "a.jsonl", rows)) != first


def test_a_metric_that_came_later_leaves_the_identity_of_a_task(tmp_path):
    rows = [{"text": f"row {n}", "label": n % 3} for n in range(30)]
    task = load_task(DataSource(str(write_rows(tmp_path / "a.jsonl", rows))))
    assert task.metrics == ("accuracy", "macro_f1")
    assert digest_of_rows(dataclasses.replace(task, metrics=("accuracy",))) == digest_of_rows(task)
    assert digest_of_rows(dataclasses.replace(task, metrics=("matthews",))) != digest_of_rows(task)
