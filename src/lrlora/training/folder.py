"""The run folder: what is written where, and what is found there when a run starts again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lrlora.errors import InputError
from lrlora.files import new_folder, read_json, write_json
from lrlora.training.saved import LABELS

# settings that do not change what is trained: a run may be resumed with others
_FREE = {"json", "debug", "verbose", "overwrite", "out", "report_to", "save_steps", "rank_steps"}


def read(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        InputError: the file is not JSON.
    """
    return read_json(path, "delete the folder or pass --overwrite")


def check(folder: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Whether the folder holds this very run, finished. Changes nothing.

    Raises:
        InputError: the folder holds a run with other settings and overwrite is off, or files that no run wrote.
    """
    described = folder / "config.json"
    if folder.exists() and any(folder.iterdir()) and not described.exists():
        advice = "; --overwrite does not delete those" if overwrite else ""
        raise InputError(f"{folder} holds files that no run of lrlora wrote{advice}; pass another --out")
    if overwrite or not described.exists():
        return False
    changed = _changed_settings(folder, settings)
    if changed and _has_results(folder):
        raise InputError(
            f"{folder} holds a run with other settings ({', '.join(changed[:3])}); pass another --out, or --overwrite "
            "to delete it"
        )
    return not changed and (folder / "metrics.json").exists()


def start(folder: Path, settings: dict[str, Any], versions: dict[str, str], overwrite: bool) -> None:
    """Make the folder and write config.json, once data and model are known to be there; an old run is deleted here."""
    described = folder / "config.json"
    if described.exists() and (overwrite or _changed_settings(folder, settings)):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(described, {"settings": settings, "versions": versions})


def _changed_settings(folder: Path, settings: dict[str, Any]) -> list[str]:
    before = read(folder / "config.json")["settings"]
    changed = [k for k in settings if k not in _FREE and before.get(k, settings[k]) != settings[k]]
    return [f"{k} {before.get(k)!r} -> {settings[k]!r}" for k in changed]


def _has_results(folder: Path) -> bool:
    return (folder / "metrics.json").exists() or any((folder / "checkpoints").glob("checkpoint-*"))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; one whose writing was cut short is deleted."""
    numbered = [(int(p.name.split("-")[1]), p) for p in folder.glob("checkpoint-*") if p.name.split("-")[1].isdigit()]
    for _, checkpoint in sorted(numbered, reverse=True):
        if _is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _is_whole(checkpoint: Path) -> bool:
    # the Trainer writes trainer_state.json last
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(checkpoint / "adapter_model.safetensors", framework="pt") as file:
            return bool(list(file.keys()))
    except (OSError, json.JSONDecodeError, SafetensorError):
        return False


def save_adapter(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save the adapter, as PEFT saves it, its tokenizer and the names of its classes; one that is there gives way."""
    with new_folder(folder, overwrite=True) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        if model.peft_config["default"].task_type == "SEQ_CLS" and model.config.num_labels > 1:
            write_json(beside / LABELS, list(model.config.id2label.values()))
