"""An export for one server: one rank for all layers, what it would not take refused before anything is written."""

import json
from pathlib import Path

import pytest

from lrlora.cli import main
from lrlora.errors import InputError
from lrlora.export import RankChoice, export_lora
from lrlora.export.lora.servers import SERVERS, check_server, serving
from lrlora.saved.base import IMAGE_CLS
from tests.export.cases import make


@pytest.mark.parametrize("server", SERVERS)
def test_a_decoder_is_exported_with_one_rank_and_the_command_that_serves_it(tmp_path, capsys, server):
    case = make("llama", tmp_path)
    out = tmp_path / "for it"
    words = ["export", str(case.adapter), "--out", str(out), "--energy", "0.5", "--for", server]
    assert main(words) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {} and config["r"] == config["lora_alpha"] == 8 and not config["use_rslora"]
    said = capsys.readouterr().err
    assert f"to serve it: {serving(server, config['base_model_name_or_path'], out, 8)}" in said
    assert f"'{out}'" in said


@pytest.mark.parametrize("server", SERVERS)
def test_what_a_server_does_not_take_is_refused_and_nothing_is_written(tmp_path, server):
    case = make("bert", tmp_path)
    with pytest.raises(InputError, match=f"--for {server}: .*trained biases"):
        export_lora(str(case.adapter), tmp_path / "out", RankChoice(rank=8), server=server)
    assert not (tmp_path / "out").exists()


def test_names_ranks_and_images():
    plain = {"r": 512, "bias": "none"}
    check_server("vllm", plain, {})
    with pytest.raises(InputError, match="rank 600 is above 512"):
        check_server("vllm", {**plain, "r": 600}, {})
    with pytest.raises(InputError, match="serves no image classifiers"):
        check_server("vllm", plain, {}, IMAGE_CLS)
    assert "--max-lora-rank 32 --lora-modules a=b/a" in serving("vllm", "base", Path("b/a"), 20)


def test_an_unknown_server_is_named(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out"), "--for", "tgi"]) == 2
    assert "--for takes vllm or llama.cpp, got 'tgi'" in capsys.readouterr().err


def test_layers_that_lose_most_of_their_update_are_said(tmp_path):
    case = make("llama", tmp_path)
    lines: list[str] = []
    made = export_lora(str(case.adapter), tmp_path / "out", RankChoice(rank=1), say=lines.append)
    lost = [row for row in made.layers if row.relative_error > 0.5]
    found = [line for line in lines if "lose more than half of |dW|" in line]
    assert len(found) == bool(lost) and (not lost or f"warning: {len(lost)} of {len(made.layers)} layers" in found[0])
