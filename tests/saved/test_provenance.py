"""Where a run comes from is written down, and decides nothing."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime

import pytest

from lrlora.saved import provenance
from lrlora.training import train
from tests.training.cases import contents
from tests.training.test_run import config_for

TRAIN = """
import sys
from pathlib import Path
from lrlora.training import train
from tests.training.test_run import config_for
model, data, out = (Path(word) for word in sys.argv[1:])
train(config_for(model, data, out, compare=True, target_modules=["query", "key", "value"]))
"""


def test_two_processes_write_the_same_bytes(tiny_encoder, sentences, tmp_path):
    found = []
    for seed in ("1", "2"):
        out = tmp_path / "run"
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", TRAIN, str(tiny_encoder), str(sentences), str(out)],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-3000:]
        found.append({**contents(out / "adapter"), **contents(out / "lora" / "adapter")})
        found[-1]["ranks.json"] = (out / "ranks.json").read_bytes()
        metrics = json.loads((out / "metrics.json").read_text())
        found[-1]["metrics.json"] = json.dumps({k: v for k, v in metrics.items() if k != "wall_s"}).encode()
        shutil.rmtree(out)
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []
    assert json.loads(found[0]["adapter_config.json"])["target_modules"] == ["key", "query", "value"]


def test_a_run_says_where_it_comes_from_and_resumes_from_anywhere(tiny_encoder, sentences, tmp_path, monkeypatch):
    config = config_for(tiny_encoder, sentences, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["/home/me/bin/lrlora", "train", "--data", "two words"])
    train(config)
    file = tmp_path / "run" / "config.json"
    first = json.loads(file.read_text())["provenance"]
    assert first["command"] == "lrlora train --data 'two words'"
    assert first["base"]["revision"] is None and re.fullmatch(r"[0-9a-f]{16}", first["base"]["digest"])
    times = [datetime.strptime(first[name], "%Y-%m-%dT%H:%M:%SZ") for name in ("started", "ended")]
    assert times[0] <= times[1] and first["resumed"] == []
    (tmp_path / "run" / "metrics.json").unlink()
    monkeypatch.setattr(sys, "argv", ["other"])
    monkeypatch.setattr(provenance, "git_state", lambda: None)
    train(config)
    again = json.loads(file.read_text())["provenance"]
    assert again["started"] == first["started"] and len(again["resumed"]) == 1 and again["command"] == "other"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["was_resumed"]


def test_a_model_of_the_hub_has_a_revision():
    found = provenance.provenance(f"owner/name@{'a' * 40}", {})
    assert found["base"] == {"revision": "a" * 40, "digest": None}
    assert provenance.provenance("owner/name", {})["base"] == {"revision": None, "digest": None}


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_the_state_of_a_work_tree(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *author, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state(tmp_path) is None
    git("init", "-q")
    assert provenance.git_state(tmp_path) is None
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    hook.chmod(0o755)
    git("config", "core.fsmonitor", str(hook))
    commit = git("-c", "core.fsmonitor=false", "rev-parse", "HEAD")
    assert provenance.git_state(tmp_path) == {"commit": commit, "is_dirty": False}
    (tmp_path / "a").write_text("b")
    assert provenance.git_state(tmp_path) == {"commit": commit, "is_dirty": True}
    assert not (tmp_path / "was-run").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state(tmp_path) is None


def test_a_git_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(provenance, "_TIMEOUT_S", 0.5)
    assert provenance.git_state(tmp_path) is None
