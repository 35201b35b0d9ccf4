"""A run folder read by another version: older ones load, newer ones are read or refused by name."""

import json
from dataclasses import replace

import pytest

from lrlora import InputError
from lrlora.saved import RunFolder
from lrlora.saved.run import FORMAT
from lrlora.training import read_result, train
from tests.training.test_run import config_for


@pytest.fixture
def run(tiny_encoder, sentences, tmp_path):
    config = replace(config_for(tiny_encoder, sentences, tmp_path / "run"), max_steps=2)
    train(config)
    return config, RunFolder(tmp_path / "run")


def rewrite(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_what_it_holds(run):
    config, folder = run
    assert folder.is_run and folder.is_finished and folder.settings["r"] == config.adapter.r
    assert folder.described["format"] == FORMAT and set(folder.inputs) == {"data", "model"}
    assert [row.layer for row in folder.ranks] == [row.layer for row in read_result(folder.path).ranks]
    assert folder.records[-1]["step"] == 2 and folder.metrics["steps"] == 2
    assert RunFolder(folder.path / "nothing").settings == {} and RunFolder(folder.path / "nothing").ranks is None


def test_one_of_a_newer_version_is_refused(run):
    config, folder = run
    rewrite(folder.path / "config.json", format=FORMAT + 1)
    for read in (lambda: train(config), lambda: RunFolder(folder.path).settings):
        with pytest.raises(InputError, match=rf"format {FORMAT + 1}, of a newer lrlora, .* up to {FORMAT}; upgrade"):
            read()


def test_one_without_a_format_is_shown_again(run):
    config, folder = run
    described = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps({k: v for k, v in described.items() if k != "format"}))
    assert train(config).metrics == folder.metrics


def test_ranks_of_another_version(run):
    _, folder = run
    file = folder.path / "ranks.json"
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([{**row, "a_later_measure": 1.0} for row in rows]))
    assert [row.as_dict() for row in RunFolder(folder.path).ranks or []] == rows
    file.write_text(json.dumps([{"layer": row["layer"]} for row in rows]))
    with pytest.raises(InputError, match=r"ranks.json holds no rows of learned ranks .*'block'"):
        _ = RunFolder(folder.path).ranks
