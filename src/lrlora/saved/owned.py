"""Which files of a folder a run has written, by name: nothing else is ever deleted."""

from __future__ import annotations

import json
import re
from pathlib import Path

from lrlora.errors import InputError
from lrlora.files import explained
from lrlora.saved.kept_card import edited_card
from lrlora.saved.names import (
    ADAPTER,
    CHECKPOINTS,
    CONFIG,
    LOCK,
    LOG,
    LORA,
    METRICS,
    PICTURE,
    PREDICTIONS,
    RANKS,
    RECORDS,
    SUMS,
)

_FILES = {CONFIG, METRICS, PREDICTIONS, RANKS, RECORDS, PICTURE, LOG, SUMS}
_FOLDERS = {ADAPTER, CHECKPOINTS}
# temporary files and folders of `lrlora.files` that a killed process left
_BEGUN = re.compile(rf"\.({'|'.join(sorted(_FILES | _FOLDERS))})\.[\w.-]*(tmp|old)")
_REPORT = "report.html"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_OF_ADAPTER = re.compile(
    # PEFT's, ours, and what the tokenizers and image processors of transformers are made of
    r"preprocessor_config\.json|adapter_config\.json|adapter_model\.safetensors|README\.md|ranks\.png|labels\.json|pooling\.json|"
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|normalizer\.json|"
    r"chat_template\.(jinja|json)|vocab[\w.-]*\.(txt|json|model|bpe)|entity_vocab\.json|emoji\.json|merges\.txt|"
    r"byte_maps\.json|prophetnet\.tokenizer|bpe\.codes|dict\.txt|(source|target)\.spm|[\w.-]*(tokenizer|sentencepiece|spiece|spm|bpe)[\w.-]*\.(model|tiktoken)"
)
_OF_CHECKPOINT = re.compile(
    rf"{_OF_ADAPTER.pattern}|"
    r"trainer_state\.json|training_args\.bin|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth|"
    # of FSDP, and of DeepSpeed
    r"pytorch_model_fsdp\.bin|latest|zero_to_(fp32|torch)\.py"
)
_SHARDS = re.compile(r"global_step\d+")
_OF_SHARDS = re.compile(r"\w+_states\.pt")
_TRACKED = re.compile(r"events\.out\.tfevents\..*")


def is_run(folder: Path) -> bool:
    """Whether a folder's config.json is one that a run has written; a model has a file of that name too."""
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and isinstance(described.get("settings"), dict) and "versions" in described


def foreign(folder: Path) -> list[str]:
    """Files in a run folder, at any depth, that no run has written; paths relative to the folder."""
    if not folder.is_dir():
        return []
    return [str(path.relative_to(folder)) for path in _foreign_to_run(folder)]


def foreign_to_nobody(folder: Path) -> list[str]:
    """As `foreign`, of a folder in which no run has begun: all but what a start that was killed has left."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if name != LOCK and not _BEGUN.fullmatch(name)]


def foreign_in_the_way(folder: Path) -> list[str]:
    """As `foreign`, of what a resumed run will replace: its adapter and its checkpoints."""
    replaced = [
        (folder / ADAPTER, _OF_ADAPTER),
        *((path, _OF_CHECKPOINT) for path in checkpoints(folder / CHECKPOINTS)),
    ]
    found = [path for where, is_mine in replaced if where.is_dir() for path in _foreign_files(where, is_mine)]
    return [str(path.relative_to(folder)) for path in found]


def refuse(folder: Path, found: list[str], overwrite: bool) -> None:
    """Refuse to train in a folder with files that no run has written.

    Args:
        folder: where a run would be.
        found: those files, as the functions above find them.
        overwrite: whether the user has asked to delete an older run.

    Raises:
        InputError: there are any; it names them.
    """
    if found:
        advice = "; --overwrite does not delete those" if overwrite else ""
        raise InputError(
            f"{folder} holds files that no run of lrlora wrote ({named(found)}){advice}; move them away, or pass "
            "another --out"
        )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the newest last."""
    numbered = [(_CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("checkpoint-*")]
    return [path for _, path in sorted((int(match.group(1)), path) for match, path in numbered if match)]


def remove(folder: Path) -> None:
    """Delete all that a run has written into its folder, which stays.

    Raises:
        InputError: the folder holds anything else, which is named; then nothing is deleted. Or deleting a file fails.
    """
    found = foreign(folder)
    if found:
        raise InputError(f"{folder} holds {named(found)}, which no run of lrlora wrote; nothing there was "
                         "deleted; move it away, or pass another --out")  # fmt: skip
    with explained(folder):
        _remove_all(folder, keep=LOCK)


def remove_checkpoint(folder: Path) -> None:
    """Delete a checkpoint.

    Raises:
        InputError: it holds what no run has written; then nothing is deleted. Or a file may not be deleted.
    """
    found = [path.name for path in _foreign_files(folder, _OF_CHECKPOINT)]
    if found:
        raise InputError(f"{folder} is not whole and holds {named(found)}, which no run of lrlora wrote; move it away")
    with explained(folder):
        _remove_all(folder)
        folder.rmdir()


def named(found: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _remove_all(folder: Path, keep: str = "") -> None:
    for path in folder.iterdir():
        if path.name == keep:
            continue
        if path.is_dir():
            _remove_all(path)
            path.rmdir()
        else:
            path.unlink()


def _foreign_to_run(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_symlink():
            found.append(path)
        elif path.is_dir():
            found += _foreign_to_part(path)
        elif not (name in _FILES or name == LOCK or _BEGUN.fullmatch(name) or (name == _REPORT and _is_report(path))):
            found.append(path)
    return found


def _foreign_to_part(path: Path) -> list[Path]:
    """What is not a run's in a folder inside a run folder."""
    begun = _BEGUN.fullmatch(path.name)
    name = begun.group(1) if begun else path.name
    if name == ADAPTER:
        return [*_foreign_files(path, _OF_ADAPTER), *edited_card(path)]
    if name == CHECKPOINTS:
        return _foreign_to_checkpoints(path)
    if name == LORA and (is_run(path) or not any(path.iterdir())):
        return _foreign_to_run(path)
    return [path]


def _foreign_to_checkpoints(folder: Path) -> list[Path]:
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder and _CHECKPOINT.fullmatch(path.name):
            found += _foreign_files(path, _OF_CHECKPOINT)
        elif is_folder and path.name == "runs":  # where the Trainer lets tensorboard write
            found += [p for p in sorted(path.rglob("*")) if not p.is_dir() and not _TRACKED.fullmatch(p.name)]
        else:
            found.append(path)
    return found


def _foreign_files(folder: Path, is_mine: re.Pattern[str]) -> list[Path]:
    found: list[Path] = []
    for path in sorted(folder.iterdir()):
        if is_mine is _OF_CHECKPOINT and path.is_dir() and not path.is_symlink() and _SHARDS.fullmatch(path.name):
            found += _foreign_files(path, _OF_SHARDS)
        elif path.is_dir() or path.is_symlink() or not is_mine.fullmatch(path.name):
            found.append(path)
    return found


def is_of_adapter(name: str) -> bool:
    """Whether a file of an adapter folder has a name that a run or an export writes."""
    return name == SUMS or _OF_ADAPTER.fullmatch(name) is not None


def _is_report(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as page:
        return "<footer>lrlora " in page.read()
