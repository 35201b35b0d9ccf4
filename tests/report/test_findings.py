"""What a report concludes, on runs whose truth is planted."""

import csv
import json

import numpy
import peft
import pytest

import lrlora
from lrlora.cli import main
from lrlora.ranks.measure import measure
from lrlora.ranks.seeds import MEASURES
from lrlora.report import findings
from lrlora.saved.results import read_run
from lrlora.saved.updates import stored_updates
from tests.conftest import disturb, tiny_bert
from tests.report.planted import write_adapter, write_run

MEASURED = [name for name in MEASURES if name != "relative_norm"]
SPECTRA = ([3.0, 2.0, 1.0], [1.0, 1.0, 1.0]), ([5.0, 0.5, 0.1], [2.0, 1.9, 1.5])


@pytest.mark.parametrize("planted", SPECTRA)
def test_planted_spectra_give_their_ranks(tmp_path, planted):
    names = ["layer.0.attention.self.query", "layer.0.output.dense"]
    write_adapter(tmp_path / "a", dict(zip(names, planted, strict=True)))
    for row, sigma in zip(read_run(tmp_path / "a").rows, planted, strict=True):
        s = numpy.array(sigma)
        p = s / s.sum()
        assert row.stable_rank == pytest.approx((s**2).sum() / s.max() ** 2, rel=1e-4)
        assert row.stable_rank_ba == pytest.approx(row.stable_rank, rel=1e-4)
        assert row.effective_rank == pytest.approx(numpy.exp(-(p * numpy.log(p)).sum()), rel=1e-4)
        assert row.numerical_rank == 3


def test_c_frozen_is_no_learned_rank(tmp_path):
    run = write_run(tmp_path / "run", c_shift=0.0)
    found = findings([read_run(run)])
    assert found.is_frozen
    assert found.beyond.startswith("no learned rank beyond LoRA's")
    # although phi, untrained, makes another rank of the same factors
    assert found.variation.against_ba.is_shown
    assert any("no rank was learned there" in text for text in found.warnings)


def test_phi_as_a_straight_line_is_no_learned_rank(tmp_path):
    found = findings([read_run(write_run(tmp_path / "run", tau=100.0))])
    assert found.beyond.startswith("no learned rank beyond LoRA's")
    assert any("straight line" in text for text in found.warnings)


def test_attention_and_mlp_of_one_distribution_are_called_null(tmp_path):
    found = findings([read_run(write_run(tmp_path / f"run{seed}", seed=seed)) for seed in range(3)])
    assert found.kinds["stable_rank"].n == 6
    assert found.kinds["stable_rank"].verdict == "no difference shown"
    assert found.seeds == 3 and found.mixed == []
    assert found.ours is not None and found.ours.mean == pytest.approx(0.81)


def test_runs_that_are_no_seeds_of_one_experiment_are_said(tmp_path):
    first, second = write_run(tmp_path / "a", seed=0), write_run(tmp_path / "b", seed=1)
    settings = json.loads((second / "config.json").read_text())
    settings["settings"]["learning_rate"] = 4e-3
    (second / "config.json").write_text(json.dumps(settings))
    assert findings([read_run(first), read_run(second)]).mixed == ["learning_rate (0.002, 0.004)"]
    assert "same seed" in findings([read_run(first), read_run(first)]).mixed[0]
    other = write_run(tmp_path / "other", name="gpt.h")
    with pytest.raises(lrlora.InputError, match="no layer that all seeds have"):
        findings([read_run(first), read_run(other)])


@pytest.mark.parametrize("fields", [{}, {"phi": "residual"}, {"phi": "sine"}, {"share": "type"}, {"use_rslora": True}])
def test_a_saved_adapter_is_measured_without_its_base_as_with_it(tmp_path, fields):
    config = lrlora.LRLoraConfig(r=2, target_modules=["query", "dense"], rank_pattern={"query": 3}, **fields)
    model = peft.get_peft_model(tiny_bert(), config)
    disturb(model)
    model.save_pretrained(str(tmp_path / "a"))
    alone = {row.layer: row for row in (measure(update, None) for update in stored_updates(tmp_path / "a"))}
    rows = lrlora.layer_ranks(model)
    assert len(alone) == len(rows)
    for row in rows:
        other = alone[row.layer]
        assert (other.block, other.kind, other.module, other.relative_norm) == (row.block, row.kind, row.module, None)
        assert [getattr(other, name) for name in MEASURED] == pytest.approx([getattr(row, name) for name in MEASURED])
    scales = {layer: of.scaling["default"] for layer, of, *_ in lrlora.tuner.deltas(model)}
    for update in stored_updates(tmp_path / "a"):
        of = 1 / update.A.shape[1] ** 0.5 if fields.get("phi") == "sine" else 1.0
        assert update.scale == pytest.approx(scales[f"base_model.model.{update.layer}"] * of)


def test_what_is_no_adapter_is_refused_by_name(tmp_path):
    with pytest.raises(lrlora.InputError, match="no such folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(lrlora.InputError, match="no adapter in"):
        read_run(tmp_path)
    lora = peft.get_peft_model(tiny_bert(), peft.LoraConfig(target_modules=["query"]))
    lora.save_pretrained(str(tmp_path / "lora"))
    with pytest.raises(lrlora.InputError, match="of type LORA, not LRLORA"):
        read_run(tmp_path / "lora")


def test_the_command_prints_means_with_intervals_and_writes_csv(tmp_path, capsys):
    folders = [str(write_run(tmp_path / f"run{seed}", seed=seed)) for seed in range(3)]
    assert main(["ranks", *folders, "--json", "--csv", str(tmp_path / "ranks.csv")]) == 0
    lines = json.loads(capsys.readouterr().out)
    values = [row.stable_rank for folder in folders for row in read_run(folder).rows[:1]]
    assert lines[0]["stable_rank"] == pytest.approx(numpy.mean(values))
    assert lines[0]["stable_rank_low"] < lines[0]["stable_rank"] < lines[0]["stable_rank_high"]
    assert lines[0]["seeds"] == 3
    with (tmp_path / "ranks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 24 and rows[0]["run"] == folders[0]
    assert float(rows[0]["stable_rank"]) == values[0]
    assert main(["ranks", *folders]) == 0
    shown = capsys.readouterr().out
    assert "mean of 3 seeds" in shown and "attention - MLP: no difference shown" in shown


def test_a_missing_base_is_no_obstacle_and_a_named_one_is_used(tmp_path, capsys):
    write_adapter(tmp_path / "a", {"layer.0.attention.self.query": [1.0, 0.5]})
    assert main(["ranks", str(tmp_path / "a"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["stable_rank"] == pytest.approx(1.25, rel=1e-4) and row["relative_norm"] is None
    assert main(["ranks", str(tmp_path / "a"), "--model", "./nowhere"]) == 2
