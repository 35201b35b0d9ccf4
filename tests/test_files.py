"""Files and folders are there whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from lrlora import InputError
from lrlora.files import append_line, new_file, new_folder, read_json, read_json_lines, write_json


def test_a_file_takes_the_place_of_the_old_one(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"a": 1})
    write_json(tmp_path / "deep" / "a.json", {"a": 2})
    assert read_json(tmp_path / "deep" / "a.json") == {"a": 2}
    assert os.listdir(tmp_path / "deep") == ["a.json"]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert os.listdir(tmp_path) == ["a.json"]
    assert read_json(tmp_path / "a.json") == 1


def test_a_folder_stands_at_the_end_only(tmp_path):
    with new_folder(tmp_path / "out") as beside:
        (beside / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(InputError, match=r"out is there already and is not empty; .*--overwrite"):
        with new_folder(tmp_path / "out"):
            pass
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out", overwrite=True):
        raise ZeroDivisionError
    assert (tmp_path / "out" / "a").read_text() == "a"
    with new_folder(tmp_path / "out", overwrite=True) as beside:
        (beside / "b").write_text("b")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["b"]


def test_a_killed_process_leaves_no_folder_and_the_next_one_cleans_up(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from lrlora.files import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as beside:\n"
        "    (beside / 'half').write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as beside:
        assert not (beside / "half").exists()
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: ... (os error 28)")]
)
def test_a_full_disk_is_one_clear_line(tmp_path, error):
    with pytest.raises(InputError, match=r"no space left on the disk while writing .*out; nothing was written there"):
        with new_folder(tmp_path / "out"):
            raise error
    with (
        pytest.raises(InputError, match=r"no space left on the disk while writing .*file"),
        new_file(tmp_path / "file"),
    ):
        raise error
    assert os.listdir(tmp_path) == []


def test_what_is_not_json_is_said_by_name(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"a\.json is not readable as JSON .*; train it again"):
        read_json(tmp_path / "a.json", "train it again")


def test_lines_end_at_line_feeds_only(tmp_path):
    texts = ["one\u2028two", "a\x85b\x0cc"]
    for text in texts:
        append_line(tmp_path / "lines.jsonl", json.dumps({"text": text}, ensure_ascii=False))
    assert [line["text"] for line in read_json_lines(tmp_path / "lines.jsonl")] == texts
