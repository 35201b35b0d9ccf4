"""Sending an adapter, a merged model or an exported LoRA to the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrlora.errors import InputError, first_lines
from lrlora.files import read_json
from lrlora.saved.names import ADAPTER_CONFIG
from lrlora.saved.owned import is_of_adapter

Say = Callable[[str], None]


def check_push(repo: str | None, is_public: bool = False) -> None:
    """Refuse, before any work, what could not be sent to the hub at its end. Asks the hub whose token it is.

    Args:
        repo: NAME or OWNER/NAME; None means that nothing is sent.
        is_public: whether anyone shall see it.

    Raises:
        InputError: no name of a repository, offline, no token, one that the hub does not know or that only reads, or a
            hub that cannot be reached. It says what to do.
    """
    if repo is None:
        if is_public:
            raise InputError("--public is of --push_to_hub REPO, which is missing; pass both, or neither")
        return
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"--push_to_hub takes NAME or OWNER/NAME, got {repo!r}: {first_lines(error)}") from error
    if constants.HF_HUB_OFFLINE:
        raise InputError("--push_to_hub needs the hub, and HF_HUB_OFFLINE is set; unset it, or leave --push_to_hub out")
    if get_token() is None:
        raise InputError(
            "--push_to_hub needs a token of the hub that may write, and there is none; run `hf auth login`, or set "
            "HF_TOKEN (huggingface.co/settings/tokens)"
        )
    whose: dict[str, Any] = _of_hub("cannot push to the hub", lambda: HfApi().whoami())
    if whose.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(
            f"the token of {whose.get('name')} may only read; make one that may write (huggingface.co/settings/tokens)"
        )


def files_to_send(folder: Path) -> list[str]:
    """The files of a folder that are sent, relative to it: of an adapter those that a run writes, else all."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    is_adapter = (folder / ADAPTER_CONFIG).exists()
    return [
        path.as_posix()
        for path in found
        if not any(part.startswith(".") for part in path.parts) and (not is_adapter or is_of_adapter(path.as_posix()))
    ]


def push(folder: Path, repo: str | None, is_public: bool, say: Say) -> str | None:
    """Send a folder to a model repository of the hub, in one commit; the repository is made if it is not there.

    Args:
        folder: an adapter, a merged model or an exported LoRA.
        repo: NAME or OWNER/NAME; None sends nothing.
        is_public: whether a new repository is public; one that is there stays what it is.
        say: gets a line of what was sent, and one where its adapter_config.json names a folder of this machine.

    Returns:
        The address of the repository.

    Raises:
        InputError: the hub refuses it, or cannot be reached. The folder stays.
    """
    if repo is None:
        return None
    from huggingface_hub import HfApi

    files, api = files_to_send(folder), HfApi()
    failed = f"{folder} is written, but not sent to the hub"

    def send() -> str:
        url = api.create_repo(repo, private=not is_public, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, allow_patterns=files, commit_message="Add the model")
        return str(url)

    if base := _local_base(folder):
        say(
            f"{ADAPTER_CONFIG} names {base} as its base, a folder of this machine: that path is sent as it is, and "
            "readers have to pass a base of their own"
        )
    url = _of_hub(failed, send)
    say(f"sent to {url}: {', '.join(files)}")
    return url


def _local_base(folder: Path) -> str | None:
    described = folder / ADAPTER_CONFIG
    base = read_json(described).get("base_model_name_or_path") if described.exists() else None
    return base if base and os.path.isabs(base) else None


def _of_hub(failed: str, act: Callable[[], Any]) -> Any:
    """The result of a call to the hub, whose errors are many: of HTTP, of the network, of the cache of tokens."""
    try:
        return act()
    except Exception as error:
        reason = first_lines(error)[:300]
        raise InputError(f"{failed}: {reason}; the same command with --push_to_hub tries again") from error
