"""The checkpoints of a run: which of them are whole."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lrlora.saved import names, owned


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; one whose writing was cut short is deleted."""
    for checkpoint in reversed(owned.checkpoints(folder)):
        if _is_whole(checkpoint):
            return checkpoint
        owned.remove_checkpoint(checkpoint)
    return None


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that training can resume from, the newest last. Changes nothing."""
    return [checkpoint for checkpoint in owned.checkpoints(folder) if _is_whole(checkpoint)]


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / names.TRAINER_STATE).read_text(encoding="utf-8"))
        with safe_open(checkpoint / names.ADAPTER_WEIGHTS, framework="pt") as file:
            return bool(list(file.keys()))
    except (OSError, json.JSONDecodeError, SafetensorError):
        return False
