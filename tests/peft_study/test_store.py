import json
import os

import pytest

from lrlora import InputError
from peft_study.store import Results, read_rows

ROWS = [{"fingerprint": name, "value": n / 3, "status": "done"} for n, name in enumerate("abc")]


def written(path):
    with Results(path) as results:
        for row in ROWS:
            results.append(row)
    return path.read_bytes()


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "out" / "results.jsonl"
    written(path)
    assert read_rows(path) == ROWS
    with Results(path) as results:
        results.append({**ROWS[0], "status": "failed"})
        assert results.rows["a"]["status"] == "failed"
    assert len(read_rows(path)) == 4
    with Results(path) as results:
        assert results.rows["a"]["status"] == "failed"


def test_wherever_the_last_line_was_cut_the_whole_ones_stay_and_the_next_fits(tmp_path):
    path = tmp_path / "results.jsonl"
    whole = written(path)
    before = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for length in range(before, len(whole) + 1):
        path.write_bytes(whole[:length])
        with Results(path) as results:
            # a line that lacks nothing but its end is whole
            assert list(results.rows) == (["a", "b", "c"] if length >= len(whole) - 1 else ["a", "b"])
            results.append(ROWS[2])
        assert {row["fingerprint"]: row for row in read_rows(path)} == {row["fingerprint"]: row for row in ROWS}


def test_a_file_cut_within_its_first_line_starts_afresh(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(written(path)[:7])
    with Results(path) as results:
        assert results.rows == {}
    assert path.read_bytes() == b""


def test_a_broken_line_in_the_middle_is_named_and_nothing_is_changed(tmp_path):
    path = tmp_path / "results.jsonl"
    lines = written(path).splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{oh no\n" + lines[2])
    before = path.read_bytes()
    with pytest.raises(InputError, match="line 2 is no row of a study"), Results(path):
        pass
    assert path.read_bytes() == before


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path), pytest.raises(InputError, match="another process is running this study"), Results(path):
        pass
    with Results(path) as results:
        results.append(ROWS[0])


def test_no_number_that_json_has_not(tmp_path):
    with Results(tmp_path / "results.jsonl") as results:
        results.append({**ROWS[0], "ranks": [{"rms_over_tau": float("inf"), "stable_rank": 2.0}]})
    row = json.loads((tmp_path / "results.jsonl").read_text())
    assert row["ranks"] == [{"rms_over_tau": None, "stable_rank": 2.0}]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a device that is always full")
def test_a_full_disk_is_said_in_one_line(tmp_path):
    path = tmp_path / "results.jsonl"
    with Results(path) as results:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, results._file)
        os.close(full)
        with pytest.raises(InputError, match="no space left on the disk"):
            results.append(ROWS[0])
        assert results.rows == {}
