"""A merge that a signal or a full disk ends leaves nothing that looks whole."""

import os
import signal
import subprocess
import sys

import pytest

from lrlora.cli import main
from lrlora.export import merge
from tests.export.cases import Case, make


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {"llama": make("llama", tmp_path_factory.mktemp("cases"))}


CUT_SHORT = """
import os, signal, sys
from lrlora.export.merging import merge as merging
from lrlora.cli import main
write, written = merging.write_shard, []

def write_and_stop(path, entries, tensors):
    if len(written) == 1:
        next(iter(tensors))
        path.write_bytes(b"half")
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    write(path, entries, tensors)
    written.append(path)

merging.write_shard = write_and_stop
sys.exit(main(["merge", sys.argv[2], "--out", sys.argv[3]]))
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_merge_that_is_cut_short_leaves_nothing_that_looks_whole(cases, tmp_path, name):
    case, out = cases["llama"], tmp_path / "out"
    command = [sys.executable, "-c", CUT_SHORT, name, str(case.adapter), str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not out.exists()
    if name == "SIGKILL":
        assert ended.returncode == -signal.SIGKILL
        assert [p.name for p in tmp_path.iterdir()] == [".out.tmp"]
    else:
        assert ended.returncode == 130
        assert ended.stderr.splitlines()[-1] == "lrlora: stopped by SIGINT; nothing was written"
        assert list(tmp_path.iterdir()) == []
    merge(str(case.adapter), out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line(cases, tmp_path, capsys):
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        for verb in ("merge", "export"):
            extra = ["--energy", "1.0"] if verb == "export" else []
            status = main([verb, str(cases["llama"].adapter), "--out", str(small / "out"), *extra])
            assert status == 2
            err = capsys.readouterr().err
            assert (
                err == f"lrlora: no space left on the disk while writing {small / 'out'}; nothing was written there\n"
            )
            assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
