import dataclasses
import json
import os
from pathlib import Path

import pytest

from lrlora import InputError
from peft_study.result import KEYS, CellResult
from peft_study.store import Results, read_rows
from tests.peft_study.conftest import a_row

ROWS = [a_row(fingerprint=name, value=n / 3) for n, name in enumerate("abc")]
COMMITTED = sorted((Path(__file__).parents[2] / "studies" / "results").glob("*/results.jsonl"))


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
        results.append(dataclasses.replace(ROWS[0], status="failed"))
        assert results.rows["a"].status == "failed"
    assert len(read_rows(path)) == 4
    with Results(path) as results:
        assert results.rows["a"].status == "failed"


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
        assert {row.fingerprint: row for row in read_rows(path)} == {row.fingerprint: row for row in ROWS}


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
        results.append(dataclasses.replace(ROWS[0], ranks=[{"rms_over_tau": float("inf"), "stable_rank": 2.0}]))
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


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_every_committed_row_is_written_again_byte_for_byte(path, tmp_path):
    rows = read_rows(path)
    with Results(tmp_path / "again.jsonl") as results:
        for row in rows:
            results.append(row)
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()
    assert [row.as_dict() for row in rows] == [json.loads(line) for line in path.read_text().splitlines()]


def test_a_new_row_has_the_keys_of_the_newest_committed_ones_in_their_order(tmp_path):
    newest = read_rows(next(path for path in COMMITTED if path.parent.name == "facts-pairs"))[0]
    assert tuple(ROWS[0].as_dict()) == tuple(newest.as_dict()) == tuple(key for key in KEYS if key != "traceback")
    failed = dataclasses.replace(ROWS[0], status="failed", traceback="where")
    assert tuple(failed.as_dict()) == KEYS
    assert CellResult.of(json.loads(json.dumps(failed.as_dict()))) == failed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"energy_j": 3.0}, "line 1 has the key 'energy_j', which this version does not know; a newer version wrote"),
        ({"seed": None}, "line 1 is no row of a study, it lacks 'seed'; delete the line"),
    ],
)
def test_a_row_of_a_newer_version_or_without_a_key_is_refused(tmp_path, change, said):
    line = {**ROWS[0].as_dict(), **change}
    line = {key: value for key, value in line.items() if key != "seed" or value is not None}
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=said):
        read_rows(tmp_path / "results.jsonl")
    with pytest.raises(InputError, match=said), Results(tmp_path / "results.jsonl"):
        pass
