"""The folder of a base model: local, or in the hub's cache; and what is copied out of it besides the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.saved.local import check_local
from lrlora.saved.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE, CARD, CONFIG, LABELS, POOLING, PROCESSOR, SUMS

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
    "chat_template*", "spiece*", "sentencepiece*", PROCESSOR,
)  # fmt: skip
_BASE_FILES = ("generation_config.json", "processor_config.json", "LICENSE*")
_SENTENCE_FILES = ("modules.json", "*sentence*.json", "*_Pooling/config.json", "*_Normalize/config.json")
MERGED_FILES = (
    CONFIG, CARD, SUMS, "model*.safetensors", INDEX, *_TOKENIZER_FILES, *_BASE_FILES, *_SENTENCE_FILES,
)  # fmt: skip
"""What a merge writes: `--overwrite` deletes these and no others."""
EXPORTED_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, SUMS, LABELS, BASE, POOLING, *_TOKENIZER_FILES)
"""What an export writes."""


def base_folder(name: str, revision: str | None = None) -> Path:
    """The folder that holds a base model's safetensors and config.

    A hub name is looked up in the hub's cache, and downloaded into it where that is allowed: safetensors and the small
    files next to them, never pickles.

    Args:
        name: a folder or a name on the hub.
        revision: of a model on the hub; None: its main branch.

    Raises:
        InputError: it is not there, is an adapter, or holds weights that are not plain safetensors, named.
    """
    check_local(name)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _from_hub(name, revision)
    if not (folder / CONFIG).exists():
        raise InputError(f"{folder} is not a model folder: config.json is missing")
    quantised = read_config(folder).get("quantization_config")
    if quantised:
        raise InputError(
            f"the base {name} is quantised ({quantised.get('quant_method', 'unknown')}): merging into its "
            "weights would round the update away; pass --model with the same model in plain weights"
        )
    if not (folder / INDEX).exists() and not (folder / SINGLE).exists():
        raise InputError(f"the base {name} holds {_other_weights(folder)}")
    return folder


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
    try:
        # files in subfolders are other formats of the same weights
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # huggingface_hub raises a dozen types here, from offline to a name that is no name
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name!r} is neither a model folder nor a readable model of the hub: {reason}") from error


def _other_weights(folder: Path) -> str:
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickles:
        return (
            f"only pickled weights ({pickles[0].name}), which lrlora does not read: a pickle can run any code; save "
            "it again with transformers' save_pretrained, and pass that folder as --model"
        )
    if gguf := sorted(folder.glob("*.gguf")):
        return (
            f"only quantised GGUF weights ({gguf[0].name}); load it with transformers (gguf_file=...), save it with "
            "save_pretrained, and pass that folder as --model"
        )
    return f"neither {SINGLE} nor {INDEX}"


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy the files of a tokenizer or an image processor."""
    _copy(source, out, _TOKENIZER_FILES)


def copy_small_files(base: Path, adapter: Path, out: Path, is_same_architecture: bool) -> None:
    """Copy the files next to the weights of a base; the tokenizer of the adapter takes precedence over the base's.

    sentence-transformers' files are copied with an unchanged architecture only: they would hide a new head.
    """
    _copy(base, out, (*_TOKENIZER_FILES, *_BASE_FILES, *(_SENTENCE_FILES if is_same_architecture else ())))
    if any((adapter / name).exists() for name in ("tokenizer_config.json", PROCESSOR)):
        copy_tokenizer(adapter, out)


def _copy(source: Path, out: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in source.glob(pattern):
            if file.is_file():
                target = out / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder."""
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
