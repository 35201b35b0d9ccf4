"""A cell of a study gives the number that `lrlora evaluate` gives for the same model and rows, to the last digit."""

import dataclasses
import json
from pathlib import Path

import pytest

from lrlora.cli import main
from lrlora.export.compare import compare, run_config
from lrlora.files import write_json
from lrlora.saved.names import LABELS
from peft_study import held_out
from peft_study.cell import Bench
from peft_study.plan import digests_of, final_cells
from peft_study.result import CellResult
from peft_study.spec import Training
from peft_study.workers import prepare_process
from tests.peft_study.conftest import small_study


@pytest.fixture
def run_and_keep(tiny_encoder, words, tmp_path, monkeypatch):
    """Runs a cell in a precision, and keeps the model that it scored: its row, and the folder of the adapter."""

    def run(precision) -> tuple[CellResult, Path]:
        study = dataclasses.replace(small_study(tiny_encoder, words), training=Training(precision=precision))
        cell = final_cells(study, digests_of(study), study.arms[1], study.tasks[0], 1e-2)[0]
        kept, score = tmp_path / "kept", held_out.score

        def keep_and_score(model, tokenizer, data, *rest):
            model.save_pretrained(kept)
            tokenizer.save_pretrained(kept)
            write_json(kept / LABELS, data.labels)
            return score(model, tokenizer, data, *rest)

        monkeypatch.setattr(held_out, "score", keep_and_score)
        prepare_process(1)
        row = Bench(study).run(cell)
        assert row.status == "done" and row.metrics is not None, row.reason
        return row, kept

    return run


def test_a_cell_and_the_command_line_give_one_number(run_and_keep, words, capsys):
    row, kept = run_and_keep("fp32")
    chosen = ["--data", str(words / "validation.jsonl"), "--batch_size", "8", "--max_length", "16"]
    assert main(["evaluate", str(kept), *chosen, "--models", "adapter", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["results"]["adapter"]
    assert {name: evaluated[name] for name in row.metrics} == row.metrics


def test_a_cell_is_scored_in_the_precision_of_its_training(run_and_keep, words):
    row, kept = run_and_keep("bf16")
    fields = {"data": str(words / "validation.jsonl"), "batch_size": 8, "max_length": 16}
    found = {
        precision: compare(str(kept), run_config(str(kept), **fields, precision=precision), ["adapter"]).results[
            "adapter"
        ]
        for precision in ("bf16", "fp32")
    }
    assert {name: found["bf16"][name] for name in row.metrics} == row.metrics
    assert found["fp32"]["loss"] != row.loss
