"""What is read is never written over, and --overwrite deletes nothing that its command does not write."""

import json
import os
import shutil
from pathlib import Path

import pytest

from lrlora import InputError
from lrlora.cli import main
from lrlora.export import merge
from lrlora.files import new_folder
from tests.export.cases import make


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with an adapter, and its base next to it."""
    case = make("llama", tmp_path)
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"settings": {"seed": 0}}))
    shutil.move(case.adapter, folder / "adapter")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("verb", ["merge", "export"])
def test_no_out_may_be_hold_or_lie_in_what_is_read(run, tmp_path, capsys, monkeypatch, verb):
    before = contents(tmp_path)
    (tmp_path / "link").symlink_to(run / "adapter")
    (tmp_path / "base-link").symlink_to(tmp_path / "llama-base")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(run)
    outs = (
        run / "adapter", run, run.parent, run / "merged", run / "adapter" / "merged", "link", tmp_path / "link",
        "adapter/../../one/./adapter", "~/runs/one", "~/llama-base", tmp_path / "base-link", tmp_path / "link" / "new",
        tmp_path / "llama-base" / "merged", tmp_path, ".", "..",
    )  # fmt: skip
    for out in outs:
        out = tmp_path / out if out == "link" else out
        assert main([verb, str(run), "--out", str(out), "--overwrite"]) == 2, out
        assert "which is read; pass another --out" in capsys.readouterr().err, out
    # the base's files may be links into other folders, as the hub's cache has them
    blobs = tmp_path / "blobs"
    shutil.copytree(tmp_path / "llama-base", blobs)
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in blobs.iterdir():
        (linked / file.name).symlink_to(file)
    assert main([verb, str(run), "--model", str(linked), "--out", str(blobs), "--overwrite"]) == 2
    assert {k: v for k, v in contents(tmp_path).items() if not k.startswith(("blobs", "linked"))} == before


def test_the_hub_s_cache_is_not_written_over(run, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    model = tmp_path / "hub" / "models--some--model"
    shutil.copytree(tmp_path / "llama-base", model / "snapshots" / ("0" * 40))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for out in (tmp_path / "hub", model, model / "snapshots" / ("0" * 40), model / "snapshots" / "new"):
        assert main(["merge", str(run), "--model", "some/model", "--out", str(out), "--overwrite"]) == 2
        assert "which is read" in capsys.readouterr().err


def test_overwrite_deletes_what_the_command_writes_and_nothing_else(run, tmp_path, capsys):
    for verb, odd in (("merge", "notes.txt"), ("export", "README.md")):
        out = tmp_path / verb
        assert main([verb, str(run), "--out", str(out)]) == 0
        first = contents(out)
        assert main([verb, str(run), "--out", str(out)]) == 2
        assert main([verb, str(run), "--out", str(out), "--overwrite"]) == 0
        assert contents(out) == first
        (out / "deep").mkdir()
        (out / "deep" / odd).write_text("mine")
        capsys.readouterr()
        assert main([verb, str(run), "--out", str(out), "--overwrite"]) == 2
        assert f"holds deep/{odd}, which this command does not write (1 such files)" in capsys.readouterr().err
        assert (out / "deep" / odd).read_text() == "mine"
    # an adapter is nothing that a merge writes
    assert main(["merge", str(run), "--out", str(tmp_path / "export"), "--overwrite"]) == 2


def test_a_link_to_a_folder_stands_for_it(run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    merge(str(run), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "config.json").exists()


def test_a_folder_whose_successor_did_not_come_is_put_back(tmp_path, monkeypatch):
    out, old = tmp_path / "out", tmp_path / ".out.old"
    out.mkdir()
    (out / "config.json").write_text("old")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == ".out.tmp":
            raise OSError("broken")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="broken"), new_folder(out, overwrite=True, written=("config.json",)):
        pass
    monkeypatch.undo()
    assert (out / "config.json").read_text() == "old" and os.listdir(tmp_path) == ["out"]
    # as a kill between the two renames leaves it
    out.rename(old)
    with pytest.raises(InputError, match="is there already"), new_folder(out):
        pass
    assert (out / "config.json").read_text() == "old" and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "flags", [["ranks", "--csv"], ["ranks", "--html"], ["ranks", "--rank_pattern"], ["report", "--out"]], ids=str
)
def test_a_file_that_is_read_is_not_written_over(run, tmp_path, capsys, flags):
    (tmp_path / "link.json").symlink_to(run / "adapter" / "adapter_config.json")
    before = contents(run)
    read = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.json", "../../link.json")
    for out in (*read, "../../llama-base/config.json"):
        for folder in (run, run / "adapter"):
            assert main([flags[0], str(folder), flags[1], str(run / out)]) == 2
            assert "is there already, in" in capsys.readouterr().err
    assert main([flags[0], str(run), flags[1], str(run)]) == 2
    assert "is a folder, needed a file" in capsys.readouterr().err
    assert contents(run) == before
    for _ in range(2):
        suffix = "json" if flags[1] == "--rank_pattern" else "html"
        assert main([flags[0], str(run), flags[1], str(tmp_path / f"result.{suffix}")]) == 0
    assert contents(run) == before


def test_a_tilde_is_the_home_folder_in_every_path(tiny_encoder, sentences, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    flags = ["--model", str(tiny_encoder), "--data", str(sentences), "--max_steps", "2", "--r", "2"]
    assert main(["train", *flags, "--out", "~/run"]) == 0
    for command in (
        ["merge", "~/run", "--out", "~/merged"], ["export", "~/run", "--out", "~/lora"], ["evaluate", "~/run"],
        ["evaluate", "~/merged", "--data", str(sentences)], ["ranks", "~/run", "--csv", "~/ranks.csv"],
        ["ranks", "~/run", "--rank_pattern", "~/fields.json"], ["report", "~/run"],
    ):  # fmt: skip
        assert main(command) == 0, command
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "ranks.csv").exists()
    assert list(elsewhere.iterdir()) == []
