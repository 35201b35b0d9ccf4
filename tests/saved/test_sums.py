"""SHA256SUMS is what sha256sum reads, and a file that was changed is named."""

import hashlib
import shutil
import subprocess

import pytest

from lrlora.saved.sums import said_of_sums, write_sums
from lrlora.training import train
from tests.training.test_run import config_for


def test_a_run_lists_what_it_ends_with(tiny_encoder, sentences, tmp_path):
    out = tmp_path / "run"
    train(config_for(tiny_encoder, sentences, out))
    lines = (out / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    adapter = {f"adapter/{path.name}" for path in (out / "adapter").iterdir()}
    assert set(listed) == {*adapter, "metrics.json", "ranks.json"}
    for name, digest in listed.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert said_of_sums(out) is None and said_of_sums(out / "adapter") is None
    with (out / "adapter" / "adapter_config.json").open("a") as file:
        file.write(" ")
    (out / "ranks.json").unlink()
    found = f"files that are not as they were written, by {out}/SHA256SUMS: adapter/adapter_config.json"
    assert said_of_sums(out) == f"{found}, ranks.json is missing"
    assert said_of_sums(f"{out}/adapter/") == found
    assert said_of_sums(out / "checkpoints") is None


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_takes_it(tmp_path):
    for name in ("a.json", "deep/b.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    write_sums(tmp_path)
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout == "a.json: OK\ndeep/b.json: OK\n"
    )
    (tmp_path / "a.json").write_text("other")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1
    assert said_of_sums(tmp_path) == f"files that are not as they were written, by {tmp_path}/SHA256SUMS: a.json"


def test_no_sums_no_word_and_broken_ones_are_said(tmp_path):
    assert said_of_sums(tmp_path) is None
    (tmp_path / "SHA256SUMS").write_text("half a li")
    assert "that is not as sha256sum writes it" in (said_of_sums(tmp_path) or "")
