"""Runs that several test files of this room begin with."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lrlora.training import TrainConfig, train
from tests.conftest import write_rows
from tests.training.test_run import config_for


@pytest.fixture(scope="module")
def finished(tiny_encoder, tmp_path_factory) -> TrainConfig:
    """A finished run with plain LoRA beside it."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [{"text": f"a {('good', 'bad')[n % 2]} day {n}", "label": n % 2} for n in range(40)]
    config = config_for(tiny_encoder, write_rows(folder / "days.jsonl", rows), folder / "run", compare=True)
    train(config)
    return config


@pytest.fixture
def again(finished, tmp_path) -> TrainConfig:
    """A copy of it, to spoil."""
    shutil.copytree(Path(finished.out or ""), tmp_path / "run")
    return replace(finished, out=str(tmp_path / "run"))
