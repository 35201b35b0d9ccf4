"""A run folder: one name, nothing deleted that a run did not write, and a run known by what it has read."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lrlora import InputError
from lrlora.cli import main
from lrlora.saved.checkpoints import last_checkpoint, whole_checkpoints
from lrlora.training import TrainConfig, train
from lrlora.training import run as run_module
from tests.conftest import write_rows
from tests.training.test_run import config_for


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


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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


def test_a_finished_run_says_that_it_is_shown_again(again, capsys):
    out = Path(again.out or "")
    os.utime(out / "metrics.json", (0, time.mktime((2026, 3, 4, 5, 6, 0, 0, 0, -1))))
    train(again)
    said = capsys.readouterr().err.splitlines()
    assert f"lrlora: {out} finished before, on 2026-03-04 at 05:06; shown again" in said


def changed_rows(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """The run with data of its own, which are then changed in one letter."""
    file = Path(shutil.copy(str(config.data), tmp_path / "days.jsonl"))
    config = replace(config, data=str(file), out=str(tmp_path / "mine"), compare=False)
    train(config)
    file.write_text(file.read_text().replace('good day 2"', 'fine day 2"'))
    return config


def test_the_same_command_on_other_rows_is_refused_like_other_settings(finished, tmp_path, capsys):
    config = changed_rows(finished, tmp_path)
    before = contents(tmp_path / "mine")
    with pytest.raises(InputError, match=r"mine holds a run with other data \(the rows of .*days\.jsonl changed since"):
        train(config)
    assert contents(tmp_path / "mine") == before
    assert main(["evaluate", str(tmp_path / "mine"), "--models", "adapter"]) == 0
    assert "days.jsonl have changed since" in capsys.readouterr().err
    assert train(replace(config, overwrite=True)).metrics["steps"] == 4
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "mine"), "--models", "adapter", "--eval_rows", "3"]) == 0
    assert "changed" not in capsys.readouterr().err


def test_a_killed_run_does_not_go_on_with_other_rows(finished, tmp_path):
    config = changed_rows(finished, tmp_path)
    (tmp_path / "mine" / "metrics.json").unlink()
    with pytest.raises(InputError, match="changed since"):
        train(config)
    # where nothing was trained it starts afresh
    shutil.rmtree(tmp_path / "mine" / "checkpoints")
    assert not train(config).metrics["was_resumed"]


def test_another_base_in_the_same_place_is_another_run(finished, tmp_path):
    base = shutil.copytree(str(finished.model), tmp_path / "base")
    config = replace(finished, model=str(base), out=str(tmp_path / "run"), compare=False)
    train(config)
    weights = base / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(InputError, match=r"the weights of the base model of .*base changed since"):
        train(config)


def test_rows_that_are_gone_do_not_hide_a_finished_run(finished, tmp_path, capsys):
    config = changed_rows(finished, tmp_path)
    Path(config.data or "").unlink()
    assert train(config).metrics["steps"] == 4
    assert "has changed since is not known: no such file" in capsys.readouterr().err


def test_paths_are_whole_in_what_is_written(finished, tmp_path, monkeypatch):
    shutil.copytree(str(finished.model), tmp_path / "base")
    shutil.copy(str(finished.data), tmp_path / "days.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = replace(finished, model="base", data="~/days.jsonl", eval_data="./days.jsonl", out="run", compare=False)
    assert train(config).folder == Path("run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    wanted = {"model": "base", "data": "days.jsonl", "eval_data": "days.jsonl", "out": "run"}
    assert {name: settings[name] for name in wanted} == {name: str(tmp_path / p) for name, p in wanted.items()}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["source"].startswith(str(tmp_path))
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(tmp_path / "base")


def test_a_name_of_the_hub_stays_a_name():
    config = TrainConfig.of(model="roberta-base", data="nyu-mll/glue").with_absolute_paths()
    assert (config.model, config.data) == ("roberta-base", "nyu-mll/glue")


def of_the_first_version(config: TrainConfig) -> None:
    """Let the run look as the first version wrote it: relative paths, and not what it has read."""
    file = Path(config.out or "") / "config.json"
    described = json.loads(file.read_text())
    settings = described["settings"]
    del described["inputs"], described["format"]
    for name in ("split_seed", "eval_data", "pooling", "bias", "rank_pattern", "carrier"):
        del settings[name]
    settings.update(tau=str(settings["tau"]), verbose=False, json=True, debug=False)
    for name in ("model", "data", "out"):
        described["settings"][name] = os.path.relpath(described["settings"][name])
    file.write_text(json.dumps(described))


def test_a_run_of_the_first_version_is_shown_and_goes_on(again, capsys):
    of_the_first_version(again)
    train(again)
    assert "whether its rows or its base model have changed since is not known" in capsys.readouterr().err
    out = Path(again.out or "")
    (out / "metrics.json").unlink()
    assert train(again).metrics["was_resumed"]
    assert "was begun by an earlier version" in capsys.readouterr().err
    assert not json.loads((out / "config.json").read_text())["inputs"]
    with pytest.raises(InputError, match=r"split_seed 0 -> 1"):
        train(replace(again, split_seed=1))
    with pytest.raises(InputError, match=r"bias 'none' -> 'all'"):
        train(again.with_settings(bias="all"))
    with pytest.raises(InputError, match=r"tau 0.05 -> 0.1"):
        train(again.with_settings(tau=0.1))


def test_a_run_that_ended_before_its_results_trains_no_further_step(again):
    out = Path(again.out or "")
    before = json.loads((out / "metrics.json").read_text())
    (out / "metrics.json").unlink()
    after = train(again).metrics
    assert after["steps"] == 4
    assert {k: after[k] for k in ("loss", "accuracy", "train_loss")} == {
        k: before[k] for k in ("loss", "accuracy", "train_loss")
    }


def test_a_comparison_may_come_later(finished, tmp_path):
    config = replace(finished, out=str(tmp_path / "run"), compare=False)
    train(config)
    assert train(replace(config, compare=True)).compared is not None


def test_the_log_holds_losses_and_both_rates(finished):
    out = Path(finished.out or "")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2, 3, 4]
    for line in losses:
        assert set(line) == {"step", "epoch", "loss", "learning_rate", "c_learning_rate", "grad_norm"}
        assert line["c_learning_rate"] == pytest.approx(10 * line["learning_rate"])
        assert line["loss"] > 0 and line["grad_norm"] > 0
    evaluation = lines[-1]
    metrics = json.loads((out / "metrics.json").read_text())
    assert (evaluation["eval_loss"], evaluation["eval_accuracy"]) == (metrics["loss"], metrics["accuracy"])
    assert metrics["train_loss"] == pytest.approx(sum(line["loss"] for line in losses) / 4)
    lora = (out / "lora" / "log.jsonl").read_text()
    assert '"loss"' in lora and "c_learning_rate" not in lora


def test_between_checkpoints_a_loss_is_a_mean(finished, tmp_path):
    config = replace(finished, out=str(tmp_path / "run"), compare=False, save_steps=3)
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    every = [json.loads(line) for line in (Path(finished.out or "") / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 4]
    assert lines[0]["loss"] == pytest.approx(sum(line["loss"] for line in every[:3]) / 3, rel=1e-5)


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
