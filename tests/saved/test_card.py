"""Model cards: their code runs, the hub reads them, they name no path, and nobody's README is written over."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from lrlora import InputError
from lrlora.saved import card
from lrlora.saved.card_origin import base_of
from lrlora.saved.kept_card import may_be_replaced, signed
from lrlora.saved.run import RunFolder
from lrlora.training import train
from tests.conftest import write_rows
from tests.saved.cards import logits_by_card, logits_by_lrlora
from tests.training.test_run import config_for


@pytest.fixture(scope="module")
def run(tiny_encoder, tmp_path_factory) -> Path:
    """A run that has moved, with plain LoRA beside it."""
    folder = tmp_path_factory.mktemp("carded")
    rows = [{"text": f"a {('good', 'bad')[n % 2]} day {n}", "label": ("up", "down")[n % 2]} for n in range(40)]
    data = write_rows(folder / "days.jsonl", rows)
    train(config_for(tiny_encoder, data, folder / "run", compare=True, learning_rate=0.02))
    return folder / "run"


def test_the_code_of_a_card_gives_the_logits_of_its_folder(run, tmp_path):
    for name, has_lrlora in (("adapter", True), ("lora/adapter", False)):
        found = logits_by_card(run / name, tmp_path / name.replace("/", "-"), has_lrlora)
        torch.testing.assert_close(found, logits_by_lrlora(run / name))


@pytest.mark.parametrize("case", ["mean", "decoder", "causal"])
def test_the_code_says_what_else_a_base_needs(tiny_encoder, tiny_decoder, tmp_path, case):
    rows = [{"text": f"a {('good', 'bad')[n % 2]} day {n}", "label": n % 2} for n in range(20)]
    if case == "causal":
        rows = [{"instruction": f"name day {n}", "output": f"day {n}"} for n in range(20)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    base = tiny_encoder if case == "mean" else tiny_decoder
    pooling = {"pooling": "mean"} if case == "mean" else {}
    train(config_for(base, data, tmp_path / "run", learning_rate=0.02, max_steps=2, **pooling))
    adapter = tmp_path / "run" / "adapter"
    torch.testing.assert_close(logits_by_card(adapter, tmp_path / "scratch", True), logits_by_lrlora(adapter))


def test_the_hub_reads_the_front_matter(run):
    found = ModelCard.load(run / "adapter" / "README.md")
    assert found.data.to_dict() == {
        "library_name": "peft", "pipeline_tag": "text-classification", "tags": ["lr-lora"],
    }  # fmt: skip
    assert "license: to be chosen by whoever publishes this" in found.text
    assert "Classes, in the order of the outputs: down, up." in found.text
    assert "pip install lrlora" in found.text and "| r | `2` | `8` |" in found.text
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"| accuracy | {metrics['accuracy']:.4f} |" in found.text
    assert (run / "adapter" / "ranks.png").read_bytes() == (run / "ranks.png").read_bytes()
    assert ModelCard.load(run / "lora" / "adapter" / "README.md").data.tags == ["lora"]
    assert not (run / "lora" / "adapter" / "ranks.png").exists()


def test_the_ranks_of_a_card_are_the_means_of_the_run(run):
    rows = RunFolder(run).ranks or []
    attention = [row for row in rows if row.kind == "attention"]
    mean = sum(row.stable_rank for row in attention) / len(attention)
    text = (run / "adapter" / "README.md").read_text()
    assert f"| **attention, mean** | {len(attention)} | {mean:.2f} |" in text
    assert card.rank_table([]) == ""


def test_no_path_of_this_machine_is_in_a_card(run, tiny_encoder):
    text = (run / "adapter" / "README.md").read_text()
    assert f"`{tiny_encoder.name}`, a local folder; digest of its files " in text
    assert "`days.jsonl (local)`" in text
    assert str(run.parent) not in text and str(tiny_encoder.parent) not in text and str(Path.home()) not in text


def test_what_a_card_says_of_a_base(tmp_path, embedded_encoder):
    hub = base_of("owner/name", f"owner/name@{'a' * 40}")
    assert (hub.hub_name, hub.text()) == ("owner/name", f"`owner/name`, of the hub; revision {'a' * 40}.")
    snapshot = base_of(f"/cache/models--owner--a-name/snapshots/{'b' * 40}")
    assert (snapshot.hub_name, snapshot.identity) == ("owner/a-name", f"revision {'b' * 40}")
    assert base_of(str(tmp_path), "0123456789abcdef").text() == (
        f"`{tmp_path.name}`, a local folder; digest of its files 0123456789abcdef."
    )
    assert base_of("/gone/model").text() == "`model`, a local folder."
    assert base_of(str(embedded_encoder)).name == "all-MiniLM-L6-v2"


def test_a_readme_of_somebody_else_is_kept(run, tmp_path):
    text = (run / "adapter" / "README.md").read_text()
    assert may_be_replaced(text)
    assert not may_be_replaced(text.replace("license: to be chosen", "license: chosen"))
    assert not may_be_replaced(text + "A note.\n")
    assert may_be_replaced((run / "checkpoints" / "checkpoint-4" / "README.md").read_text())
    assert not may_be_replaced("# My model\n") and may_be_replaced(signed("# Any\n"))


def test_a_run_that_ends_again_keeps_an_edited_card(tiny_encoder, sentences, tmp_path, capsys):
    config = config_for(tiny_encoder, sentences, tmp_path / "run")
    train(config)
    file = tmp_path / "run" / "adapter" / "README.md"
    for note in ("", "Mine.\n"):
        (tmp_path / "run" / "metrics.json").unlink()
        file.write_text(file.read_text() + note)
        before = file.read_text()
        capsys.readouterr()
        train(config)
        assert file.read_text() == before
        assert (f"{file} is kept as it was" in capsys.readouterr().err) == bool(note)


def test_starting_again_does_not_delete_an_edited_card(tiny_encoder, sentences, tmp_path):
    config = config_for(tiny_encoder, sentences, tmp_path / "run", max_steps=1)
    train(config)
    file = tmp_path / "run" / "adapter" / "README.md"
    file.write_text(file.read_text() + "Mine.\n")
    with pytest.raises(InputError, match=r"holds files that no run of lrlora wrote \(adapter/README.md\)"):
        train(config.with_settings(r=4, overwrite=True))
    assert file.read_text().endswith("Mine.\n")
