"""Every example is run as a user runs it, in a process of its own, and the numbers that it prints are looked at."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lrlora.cli import main

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def printed(name: str, folder: Path) -> str:
    """What an example prints, run in an empty folder, in which it must leave nothing."""
    file = ROOT / "examples" / f"{name}.py"
    ended = subprocess.run(
        [sys.executable, str(file)], cwd=folder, capture_output=True, text=True, timeout=500, env=os.environ
    )
    assert ended.returncode == 0, ended.stderr
    assert not list(folder.iterdir())
    return ended.stdout


def number(text: str, before: str) -> float:
    """The number that follows some words in the output of an example."""
    found = re.search(re.escape(before) + r"\s*([\d.]+(?:e[-+]?\d+)?)", text)
    assert found, f"no number after {before!r} in:\n{text}"
    return float(found[1])


@pytest.mark.parametrize("name", ["plain_loop", "trainer"])
def test_a_loop_and_the_trainer_learn_the_topics(name, tmp_path, embedded_encoder):
    text = printed(name, tmp_path)
    # five topics: 0.2 by chance
    assert number(text, "accuracy after:") > max(0.4, number(text, "accuracy before:") + 0.15), text
    assert len(re.findall(r"stable rank \d", text)) == 4, text
    if name == "trainer":
        ratios = [float(ratio) for ratio in re.findall(r"RMS\(B A\) / tau ([\d.]+)", text)]
        # tau = "auto" puts them at 1; without the callback tau would be inf, and these 0
        assert len(ratios) == 4 and all(0.5 < ratio < 2 for ratio in ratios), text


def test_trl_s_trainer_lowers_the_held_out_loss(tmp_path, embedded_decoder):
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed")
    text = printed("sft_trl", tmp_path)
    assert number(text, "held-out loss after:") < number(text, "held-out loss before:") - 0.05, text
    assert "trainable params: 461,460" in text


def test_what_is_merged_and_exported_is_served(tmp_path, embedded_encoder):
    text = printed("merge_and_serve", tmp_path)
    assert number(text, "merged: probabilities differ by") < 1e-4, text
    # 90 % of the energy: an error of sqrt(0.1) at most, and not nothing, or the cut would not have been made
    assert 0.05 < number(text, "exported: error of the updates") < 0.32, text
    assert number(text, "exported: the same topic for") > 80, text


@pytest.mark.parametrize("name", ["diffusers_unet", "diffusers_dit"])
def test_models_of_diffusers_are_adapted_and_their_files_come_back(name, tmp_path):
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    text = printed(name, tmp_path)
    after = number(text, "weights [1.0, 0.0]: loss" if name == "diffusers_dit" else "held-out loss after:")
    assert after < 0.95 * number(text, "held-out loss before:"), text
    assert number(text, "loaded: the loss differs by") < 1e-6, text


def test_every_example_is_short_and_is_run_here():
    tested = set(re.findall(r'"(\w+)"', Path(__file__).read_text(encoding="utf-8")))
    for file in EXAMPLES:
        assert file.stem in tested, file
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 60, file
    assert {"plain_loop", "trainer", "sft_trl", "merge_and_serve"} <= {file.stem for file in EXAMPLES}


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "llm").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_of_settings_can_be_read(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    # all is read and checked before the rows, which are not there
    assert main(["train", "--config", str(file)]) == 2
    assert "no such file or folder: gsm8k.jsonl" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
