"""The run folder: what is written where, and what is found there when a run starts again.

A file is written beside its place and renamed, so that a killed run leaves either the old file or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lrlora.errors import InputError

# settings that do not change what is trained: a run may be resumed with others
_FREE = {"json", "debug", "overwrite", "out", "report_to", "save_steps"}


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside `path` and rename it into place."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        InputError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}); delete the folder or pass --overwrite") from error


def prepare(folder: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Make the run folder ready for a run with these settings.

    Returns:
        True where the folder holds this very run, finished.

    Raises:
        InputError: the folder holds a run with other settings, or files that no run wrote, and overwrite is off.
    """
    described = folder / "config.json"
    if overwrite and folder.exists():
        if any(folder.iterdir()) and not described.exists():
            raise InputError(f"{folder} holds files that no run of lrlora wrote; --overwrite does not delete those")
        shutil.rmtree(folder)
    if described.exists():
        before = read_json(described)["settings"]
        changed = [k for k in settings if k not in _FREE and before.get(k, settings[k]) != settings[k]]
        if changed:
            changes = ", ".join(f"{k} {before.get(k)!r} -> {settings[k]!r}" for k in changed[:3])
            raise InputError(
                f"{folder} holds a run with other settings ({changes}); pass another --out, or --overwrite to delete it"
            )
        return (folder / "metrics.json").exists()
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no run of lrlora; pass another --out")
    folder.mkdir(parents=True, exist_ok=True)
    return False


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
    """Save the adapter, as PEFT saves it, beside `folder` and rename it into place."""
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    shutil.rmtree(folder, ignore_errors=True)
    beside.replace(folder)
