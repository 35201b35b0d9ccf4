"""The run folder: what is written where, and what is found there when a run starts again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from lrlora.errors import InputError
from lrlora.files import explained, make_folder, new_folder, read_json, write_json
from lrlora.training import owned
from lrlora.training.config import PLACES
from lrlora.training.pooling import Pooling
from lrlora.training.saved import LABELS, POOLING

# settings that do not change what is trained: a run may be resumed with others
_FREE = {"json", "debug", "verbose", "overwrite", "out", "report_to", "save_steps", "rank_steps", "compare"}
_WORDS = {"data": "the rows", "model": "the weights of the base model"}


def read(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        InputError: the file is not JSON.
    """
    return read_json(path, "pass another --out")


def check(folder: Path, settings: dict[str, Any], overwrite: bool, inputs: dict[str, str] | None = None) -> bool:
    """Whether the folder holds this very run, finished. Changes nothing.

    Args:
        folder: the run folder.
        settings: of the run.
        overwrite: whether another run that is there shall be deleted.
        inputs: what the run reads, as numbers (see `lrlora.training.identity`); None where it is not known yet.

    Raises:
        InputError: the folder holds a run with other settings or inputs and overwrite is off, or in the way lie files
            that no run wrote.
    """
    with explained(folder):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, needed a folder or nothing; pass another --out")
    if not owned.is_run(folder):
        _refuse_foreign(folder, owned.foreign_to_nobody(folder), overwrite)
        return False
    changed = _changes(folder, settings, inputs)
    if changed and _has_results(folder) and not overwrite:
        raise InputError(
            f"{folder} holds a run with other {_named(changed)}; pass another --out, or --overwrite to delete it"
        )
    if overwrite or changed:
        _refuse_foreign(folder, owned.foreign(folder), overwrite)
        _refuse_what_is_read(folder, settings)
        return False
    if (folder / "metrics.json").exists():
        return True
    _refuse_foreign(folder, owned.foreign_in_the_way(folder), overwrite)
    return False


def start(
    folder: Path, settings: dict[str, Any], versions: dict[str, str], inputs: dict[str, str], overwrite: bool
) -> Path | None:
    """Make the folder and write config.json, once data and model are known to be there; an old run is deleted here.

    Returns:
        The checkpoint to go on from.

    Raises:
        InputError: as `check`.
    """
    known: dict[str, str] | None = inputs
    if owned.is_run(folder):
        if overwrite or _changes(folder, settings, inputs):
            owned.remove(folder)
        elif _has_results(folder):
            # a run of an earlier version: what it has read so far is not known, and cannot be found out any more
            known = read(folder / "config.json").get("inputs")
    write_json(folder / "config.json", {"settings": settings, "versions": versions, "inputs": known})
    return last_checkpoint(folder / "checkpoints")


def lock(folder: Path) -> FileLock:
    """Keep other processes from training in a folder, which is made; until the lock is released, or the process ends.

    Raises:
        InputError: another process trains there, or the folder cannot be made.
    """
    make_folder(folder)
    with explained(folder):
        held = FileLock(folder / owned.LOCK)
        try:
            held.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"another process is training in {folder}; wait for it, or pass another --out") from error
    return held


def unlock(held: FileLock) -> None:
    """Let other processes train there; the file goes first, while it is ours."""
    Path(held.lock_file).unlink(missing_ok=True)
    held.release()


def inputs_are_known(folder: Path) -> bool:
    """Whether a run folder says what the run has read; those of the first version do not."""
    return bool(read(folder / "config.json").get("inputs"))


def what_is_left(folder: Path, settings: dict[str, Any], starts_again: bool) -> str:
    """What an interrupted run leaves in its folder, and what the same command will do, with --overwrite or without."""
    from_start = "the same command starts from the beginning"
    if not owned.is_run(folder):
        return f"nothing was written to {folder}; {from_start}"
    if _changes(folder, settings, None):
        return f"{folder} was not changed; {from_start}"
    found = whole_checkpoints(folder / "checkpoints")
    if (folder / "metrics.json").exists():
        left, then = f"{folder} holds a finished run", "shows it"
    elif found:
        left, then = f"{found[-1]} is written", "goes on from it"
    else:
        return f"{folder} holds no checkpoint yet; {from_start}"
    if starts_again:
        return f"{left}; the same command without --overwrite {then}, with it it starts from the beginning"
    return f"{left}; the same command {then}"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; one whose writing was cut short is deleted."""
    for checkpoint in reversed(owned.checkpoints(folder)):
        if _is_whole(checkpoint):
            return checkpoint
        owned.remove_checkpoint(checkpoint)
    return None


def whole_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that can be gone on from, the newest last. Changes nothing."""
    return [checkpoint for checkpoint in owned.checkpoints(folder) if _is_whole(checkpoint)]


def save_adapter(model: Any, tokenizer: Any, folder: Path, pooling: Pooling = "auto") -> None:
    """Save the adapter, as PEFT saves it, its tokenizer, classes and pooling; one that is there gives way."""
    with new_folder(folder, overwrite=True) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        if model.peft_config["default"].task_type == "SEQ_CLS" and model.config.num_labels > 1:
            write_json(beside / LABELS, list(model.config.id2label.values()))
        if pooling != "auto":
            write_json(beside / POOLING, pooling)


def _changes(folder: Path, settings: dict[str, Any], inputs: dict[str, str] | None) -> dict[str, list[str]]:
    """What differs from the run that the folder holds: under "settings" as old -> new, under "inputs" in words."""
    described = read(folder / "config.json")
    before, read_before = described["settings"], described.get("inputs") or {}
    # the first version split rows off by the seed of everything else, and left the pooling to the model
    before = {"split_seed": before.get("seed"), "pooling": "auto", **before}
    other = [
        f"{name} {before[name]!r} -> {value!r}"
        for name, value in settings.items()
        if name not in _FREE and name in before and not _is_same(name, before[name], value)
    ]
    changed = [
        f"{_WORDS[name]} of {settings.get(name) or 'the demo'} changed since"
        for name, value in (inputs or {}).items()
        if name in read_before and not _is_same_input(read_before[name], value)
    ]
    return {name: found for name, found in (("settings", other), ("data", changed)) if found}


def _is_same(name: str, before: Any, now: Any) -> bool:
    if before == now or name not in PLACES or before is None or now is None:
        return before == now
    # the first version kept paths as they were typed
    return os.path.abspath(os.path.expanduser(before)) == os.path.abspath(os.path.expanduser(now))


def _is_same_input(before: str, now: str) -> bool:
    # a model of the hub has no revision before it is in the cache
    return before == now or before.startswith(f"{now}@") or now.startswith(f"{before}@")


def _named(changed: dict[str, list[str]]) -> str:
    return " and other ".join(f"{kind} ({', '.join(found[:3])})" for kind, found in changed.items())


def _refuse_foreign(folder: Path, found: list[str], overwrite: bool) -> None:
    if found:
        advice = "; --overwrite does not delete those" if overwrite else ""
        raise InputError(
            f"{folder} holds files that no run of lrlora wrote ({owned.named(found)}){advice}; move them away, or pass "
            "another --out"
        )


def _refuse_what_is_read(folder: Path, settings: dict[str, Any]) -> None:
    for name in PLACES:
        place = Path(settings.get(name) or os.devnull).resolve()
        if place.is_relative_to(folder.resolve()):
            raise InputError(
                f"--{name} {settings[name]} lies in {folder}, whose run would be deleted before it is read; pass "
                "another --out"
            )


def _has_results(folder: Path) -> bool:
    return (folder / "metrics.json").exists() or any((folder / "checkpoints").glob("checkpoint-*"))


def _is_whole(checkpoint: Path) -> bool:
    # the Trainer writes trainer_state.json last
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        with safe_open(checkpoint / "adapter_model.safetensors", framework="pt") as file:
            return bool(list(file.keys()))
    except (OSError, json.JSONDecodeError, SafetensorError):
        return False
