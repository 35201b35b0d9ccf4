"""Model cards of merged models and exported LoRAs: their code runs without lrlora, and nobody's README is lost."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

from lrlora.export import RankChoice, export_lora, merge
from lrlora.saved.sums import said_of_sums
from lrlora.training import train
from tests.cli.commands import run as command
from tests.conftest import write_rows
from tests.saved.cards import logits_by_card, logits_by_lrlora
from tests.training.test_run import config_for


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def run(request, tiny_encoder, tiny_decoder, tmp_path_factory):
    """A classifier that has moved, on either kind of base."""
    folder = tmp_path_factory.mktemp("carded")
    rows = [{"text": f"a {('good', 'bad')[n % 2]} day {n}", "label": ("up", "down")[n % 2]} for n in range(40)]
    base = tiny_encoder
    if request.param == "decoder":
        # one that does not say what it pads with
        base = shutil.copytree(tiny_decoder, folder / "decoder")
        described = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**described, "pad_token_id": None}))
    train(config_for(base, write_rows(folder / "days.jsonl", rows), folder / "run", learning_rate=0.02))
    return folder / "run"


def test_the_code_of_a_card_gives_the_logits_of_its_folder_without_lrlora(run, tmp_path):
    merge(str(run), tmp_path / "merged")
    export_lora(str(run), tmp_path / "exported", RankChoice(energy=1.0))
    for name in ("merged", "exported"):
        found = logits_by_card(tmp_path / name, tmp_path / f"{name}-scratch", has_lrlora=False)
        torch.testing.assert_close(found, logits_by_lrlora(run / "adapter"), rtol=1e-4, atol=1e-4)
        assert said_of_sums(tmp_path / name) is None


def test_what_the_cards_say(run, tmp_path):
    merge(str(run), tmp_path / "merged", dtype="bfloat16")
    made = export_lora(str(run), tmp_path / "exported", RankChoice(rank=3))
    merged, exported = (ModelCard.load(tmp_path / name / "README.md") for name in ("merged", "exported"))
    assert (merged.data.library_name, merged.data.tags) == ("transformers", ["lr-lora"])
    assert (exported.data.library_name, exported.data.tags) == ("peft", ["lora", "lr-lora"])
    assert "stored as bfloat16; of the update of a layer rounding lost " in merged.text
    assert f"|dW - B'A'| / |dW|: {made.relative_error:.3g}." in exported.text
    accuracy = json.loads((run / "metrics.json").read_text())["accuracy"]
    for card in (merged, exported):
        assert f"| accuracy | {accuracy:.4f} |" in card.text and "**attention, mean**" in card.text
        assert str(run.parent) not in card.text and "| r | `2` | `8` |" in card.text
        assert card.data.pipeline_tag == "text-classification" and "base_model" not in card.data.to_dict()


def test_a_readme_of_somebody_else_stays_where_the_rest_is_replaced(run, tmp_path, capsys):
    for verb in ("merge", "export"):
        out = tmp_path / verb
        words = [verb, str(run), "--out", str(out)]
        assert command(capsys, *words)[0] == 0
        (out / "README.md").write_text("# Mine\n")
        status, _, err = command(capsys, *words, "--overwrite")
        assert status == 0 and (out / "README.md").read_text() == "# Mine\n"
        assert f"{out}/README.md is kept as it was" in err
        assert said_of_sums(out) is None


def test_a_checkpoint_has_not_the_numbers_of_the_end(run, tmp_path):
    export_lora(str(run / "checkpoints" / "checkpoint-4"), tmp_path / "exported", RankChoice(rank=3))
    text = (tmp_path / "exported" / "README.md").read_text()
    assert "## Results" not in text and "## Learned ranks" not in text and "| r | `2` | `8` |" in text


def test_a_changed_file_is_named_once_and_not_refused(run, tmp_path, capsys):
    words = ["merge", str(run), "--out", str(tmp_path / "merged")]
    assert "not as they were written" not in command(capsys, *words)[2]
    file = run / "adapter" / "adapter_config.json"
    before = file.read_text()
    file.write_text(before + "\n")
    try:
        for verb in (["ranks", str(run)], ["evaluate", str(run), "--models", "merged"], [*words, "--overwrite"]):
            status, _, err = command(capsys, *verb)
            assert status == 0
            assert err.count("adapter/adapter_config.json; restore it") == 1
    finally:
        file.write_text(before)


def test_an_export_has_the_same_bytes_again(run, tmp_path):
    for name in ("a", "b"):
        export_lora(str(run), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert [n for n in files if (tmp_path / "a" / n).read_bytes() != (tmp_path / "b" / n).read_bytes()] == []
    names = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names) and len(names) > 1
