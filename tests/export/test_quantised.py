"""How far the full weights that a merge goes into are from the quantised ones that were trained on."""

import json

import pytest
import torch

from lrlora.cli import main
from lrlora.export import merge
from lrlora.export.merging.quantised import as_quantised
from lrlora.saved.adapter import read_adapter
from lrlora.saved.load import load_adapter
from lrlora.tuner import deltas
from tests.cli.commands import quick, run
from tests.conftest import rel_rms
from tests.training.bases import QUIET, WAYS, decoder, need, sums

pytestmark = QUIET


@pytest.mark.parametrize("way", ["bnb-4bit", "qlora", "bnb-8bit", "torchao-int8"])
def test_it_is_that_of_the_base_that_was_loaded(embedded_encoder, tmp_path, capsys, way):
    need(way)
    base = decoder(tmp_path / "base", embedded_encoder)
    assert run(capsys, *quick(base, sums(tmp_path / "rows.jsonl"), tmp_path / "run", *WAYS[way]))[0] == 0
    saved = read_adapter(str(tmp_path / "run"))
    quantised = load_adapter(str(tmp_path / "run"))
    full = {d.name: d.layer for d in deltas(load_adapter(str(tmp_path / "run"), options=saved.options.plain))}
    moved, updates = 0.0, 0.0
    for name, layer, adapter, _ in deltas(quantised):
        W0, held = full[name].float_weight().float(), layer.float_weight().float()
        assert not torch.equal(W0, held)
        # bitsandbytes rounds what it reads back to the type that it was given
        assert rel_rms(as_quantised(W0, saved.options), held.double()) < 0.005
        moved += (held - W0).double().square().sum().item()
        updates += layer.get_delta_weight(adapter).double().square().sum().item()
    said: list[str] = []
    made = merge(str(tmp_path / "run"), tmp_path / "merged", say=said.append)
    assert made.quantization_error == pytest.approx((moved / updates) ** 0.5, rel=0.02)
    assert f"differ from those by {made.quantization_error:.3g} times the norm of dW" in said[-1]


def test_without_a_quantisation_nothing_is_said(tiny_decoder, tmp_path, capsys):
    assert run(capsys, *quick(tiny_decoder, sums(tmp_path / "rows.jsonl"), tmp_path / "run"))[0] == 0
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "run"), "--out", str(tmp_path / "merged"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["quantization_error"] is None and "full weights" not in err
