"""A run folder has one name, and nothing in it is deleted that a run did not write."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lrlora import InputError
from lrlora.cli import main
from lrlora.saved.checkpoints import last_checkpoint, whole_checkpoints
from lrlora.training import TrainConfig, train
from lrlora.training import run as run_module
from tests.conftest import write_rows
from tests.training.cases import contents


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (".", "place"),
        ("./", "place"),
        ("..", "around"),
        ("../place/", "place"),
        ("data/", "data"),
        ("./data", "data"),
        ("data/train.jsonl.gz", "train"),
        (".hidden.jsonl", "hidden"),
        ("two words.csv", "two-words"),
        ("/", "data"),
        ("nyu-mll/glue", "glue"),
        ("../no/such/..", "data"),
        ("~/mine", "mine"),
        ("runs", "runs"),
    ],
)
def test_the_default_folder_has_one_name_and_is_never_runs_itself(tmp_path, monkeypatch, data, name):
    place = tmp_path / "around" / "place"
    (place / "data").mkdir(parents=True)
    (place / "runs").mkdir()
    for file in (".hidden.jsonl", "two words.csv", "data/train.jsonl.gz"):
        (place / file).touch()
    monkeypatch.chdir(place)
    assert TrainConfig(data=data).out_folder() == f"runs/{name}"


@pytest.mark.parametrize("task", ["..", ".", "../../etc", "a/b"])
def test_a_name_of_a_task_leads_nowhere_else(task):
    out = TrainConfig(data="imdb", task=task).out_folder()
    assert Path(out).parts[0] == "runs" and len(Path(out).parts) == 2 and ".." not in Path(out).parts


def test_two_files_of_one_name_are_not_mixed(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n, folder in enumerate("ab"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "rows.jsonl", [{"text": f"{folder} {i}", "label": i % 2} for i in range(20 + n)])
    config = TrainConfig.of(model=str(tiny_encoder), data="a/rows.jsonl", max_steps=1, r=2)
    assert train(config).folder == Path("runs/rows")
    with pytest.raises(InputError, match=r"other settings \(data '.*/a/rows.jsonl' -> '.*/b/rows.jsonl'\)"):
        train(replace(config, data="b/rows.jsonl"))
    assert json.loads((tmp_path / "runs" / "rows" / "metrics.json").read_text())["train_rows"] == 18


@pytest.mark.parametrize(
    "mine",
    [
        "notes.txt",
        "plots/",
        "adapter/notes.txt",
        "adapter/merged/model.safetensors",
        "checkpoints/best.txt",
        "checkpoints/checkpoint-4/notes.txt",
        "checkpoints/checkpoint-best/adapter_model.safetensors",
        "lora/notes.txt",
        "lora/adapter/table.csv",
        "train/metrics.json",
        "report.html",
        ".hidden",
    ],
)
def test_what_no_run_wrote_is_named_and_nothing_is_deleted(again, mine):
    out = Path(again.out or "")
    (out / mine).parent.mkdir(parents=True, exist_ok=True)
    if mine.endswith("/"):
        (out / mine).mkdir()
    else:
        (out / mine).write_text("years of work")
    before = contents(out)
    with pytest.raises(InputError) as refused:
        train(replace(again, overwrite=True))
    assert mine.split("/")[0] in str(refused.value) and "--overwrite does not delete those" in str(refused.value)
    assert contents(out) == before


def test_a_link_is_not_followed(again, tmp_path):
    out, elsewhere = Path(again.out or ""), tmp_path / "elsewhere"
    shutil.move(out / "checkpoints", elsewhere)
    (out / "checkpoints").symlink_to(elsewhere)
    before = contents(elsewhere)
    with pytest.raises(InputError, match=r"holds files that no run of lrlora wrote \(checkpoints\)"):
        train(replace(again, overwrite=True))
    assert contents(elsewhere) == before


def test_all_that_a_run_wrote_gives_way(again):
    out = Path(again.out or "")
    assert main(["report", str(out)]) == 0
    for begun in (".config.json.tmp", ".lock"):
        (out / begun).touch()
    shutil.copytree(out / "adapter", out / ".adapter.old")
    assert train(again.with_settings(overwrite=True, r=4, compare=False)).metrics["steps"] == 4
    assert {path.name for path in out.iterdir()} == {
        "adapter", "checkpoints", "config.json", "log.jsonl", "metrics.json", "ranks.json", "ranks.jsonl", "ranks.png",
        "SHA256SUMS",
    }  # fmt: skip


def test_a_model_is_no_run_though_it_has_a_config(tiny_encoder, finished, tmp_path):
    model = shutil.copytree(tiny_encoder, tmp_path / "model")
    before = contents(model)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds files that no run of lrlora wrote"):
            train(replace(finished, out=str(model), overwrite=overwrite))
    assert contents(model) == before


def test_a_base_inside_the_run_is_not_deleted_before_it_is_read(again):
    inside = shutil.copytree(str(again.model), Path(again.out or "") / "adapter", dirs_exist_ok=True)
    before = contents(Path(again.out or ""))
    with pytest.raises(InputError):
        train(replace(again, model=str(inside), overwrite=True))
    assert contents(Path(again.out or "")) == before


def test_own_notes_in_an_interrupted_run_stay(finished, tmp_path, monkeypatch):
    config = replace(finished, out=str(tmp_path / "run"), compare=False)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "make_trainer", interrupt)
        with pytest.raises(KeyboardInterrupt, match="holds no checkpoint yet; the same command starts from the beginn"):
            train(config)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"wrote \(notes.txt\)"):
        train(config.with_settings(r=4))
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    # the same run deletes nothing, so it may go on beside them
    assert train(config).metrics["steps"] == 4
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_run_that_goes_on_does_not_replace_an_adapter_with_notes_in_it(again):
    out = Path(again.out or "")
    (out / "metrics.json").unlink()
    (out / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"adapter/notes\.txt"):
        train(again)
    assert (out / "adapter" / "notes.txt").read_text() == "mine"


def test_a_broken_checkpoint_with_notes_in_it_is_kept(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{")
    (checkpoint / "notes.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"checkpoint-7 is not whole and holds notes\.txt, .*; move it away"):
        last_checkpoint(tmp_path / "checkpoints")
    assert sorted(path.name for path in checkpoint.iterdir()) == ["notes.txt", "trainer_state.json"]


def test_looking_for_checkpoints_looks_in_the_folder_that_is_named_and_deletes_nothing(tmp_path):
    broken = tmp_path / "checkpoints" / "checkpoint-7"
    broken.mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    assert whole_checkpoints(tmp_path / "mine") == [] and last_checkpoint(tmp_path / "mine") is None
    assert whole_checkpoints(tmp_path / "checkpoints") == []
    assert broken.exists()
