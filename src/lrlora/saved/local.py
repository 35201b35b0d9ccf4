"""What the name of a base model means on this machine: a folder, the hub's cache, or something that is no base."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.files import read_json
from lrlora.saved import names


def absolute(name: str) -> str:
    """The absolute path of a model that is a folder here, valid in every working directory; else the name."""
    path = Path(name).expanduser()
    return os.path.abspath(path) if path.is_dir() else name


def looks_local(name: str) -> bool:
    """Whether a name of a model can be nothing but a path."""
    return name.startswith((".", "/", "~"))


def check_local(name: str) -> None:
    """Refuse, as a base model, a path that is no folder, an adapter and a run; a name of the hub passes.

    transformers loads the base under an adapter and the adapter with it, and a new adapter then takes its place.

    Raises:
        InputError: it says what to do.
    """
    folder = Path(name).expanduser()
    if looks_local(name) and not folder.is_dir():
        raise InputError(f"no such model folder: {name}")
    place = folder if folder.is_dir() else cached(name, names.ADAPTER_CONFIG)
    if place is None:
        return
    inside = place / names.ADAPTER
    if not (place / names.ADAPTER_CONFIG).is_file():
        is_model = "model_type" in _object(place / names.CONFIG)
        if is_model or not (inside / names.ADAPTER_CONFIG).is_file():
            return
        place = inside
    method = _object(place / names.ADAPTER_CONFIG).get("peft_type")
    how = f"lrlora merge {name} --out FOLDER" if method == "LRLORA" else "peft's merge_and_unload and save_pretrained"
    raise InputError(
        f"{name} is an adapter{' of a run' if place == inside else ''}, not a base model: what it has learned would be "
        f"lost; merge it first ({how}) and pass the merged model as --model, or pass its own base"
    )


def is_model(folder: str) -> bool:
    """Whether a folder holds a model of transformers, such as `lrlora merge` writes, and no adapter."""
    path = Path(folder).expanduser()
    described = path / names.CONFIG
    if not described.is_file() or (path / names.ADAPTER_CONFIG).exists():
        return False
    return "model_type" in read_json(described)


def holds_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter, or a run folder with one."""
    return (adapter_in(folder) / names.ADAPTER_CONFIG).exists()


def adapter_in(folder: Path) -> Path:
    """The adapter folder in a run folder; any other folder itself."""
    inside = folder / names.ADAPTER
    return inside if (inside / names.ADAPTER_CONFIG).exists() else folder


def read_for(adapter: Path, base: str | None) -> list[Path]:
    """The folders of an adapter, of the run around it, and of its base if that is on this machine."""
    return [adapter, *run_around(adapter), *(local_model(base) if base else ())]


def run_around(adapter: Path) -> list[Path]:
    """The run folder that an adapter or a checkpoint is in, if there is one."""
    around = adapter.resolve().parents[:2]
    return [folder for folder in around if "settings" in _object(folder / names.CONFIG)][:1]


def local_model(name: str) -> list[Path]:
    """The folder of a model, or all that the hub's cache keeps of it; nothing where it is not on this machine."""
    if Path(name).expanduser().is_dir():
        return [Path(name).expanduser()]
    found = cached(name, names.CONFIG)
    # models--OWNER--NAME/snapshots/COMMIT
    return [] if found is None else [found.parent.parent]


def cached(name: str, file: str, revision: str | None = None) -> Path | None:
    """The folder in the hub's cache that holds a file of a model, of its main branch if nothing is said."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, file, revision=revision)
    except ValueError:  # no name of the hub at all; loading it says so
        return None
    return Path(found).parent if isinstance(found, str) else None


def _object(file: Path) -> dict[str, Any]:
    """The fields of a JSON file; none if it is missing or no JSON, which the code that needs its content refuses."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
