"""Where a run comes from: the command, the time, the commit of the working folder. No part of it decides a result."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lrlora

_TIMEOUT_S = 5.0
_GIT = (
    # neither hooks nor the programs that a repository may name as a file monitor
    "git", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false",
)  # fmt: skip


def provenance(model: str, before: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of where a run comes from.

    Args:
        model: what names the weights of the base, as `lrlora.saved.identity.digest_of_model` gives it.
        before: the same of the run that is resumed; empty for a new one.

    Returns:
        "base": {"revision": the commit of a model of the hub or None, "digest": of a folder or None}; "command";
        "started", in UTC, and "resumed", a list; "git": {"commit", "is_dirty"} of the working folder or None.
    """
    _, mark, revision = model.rpartition("@")
    now = utc_now()
    return {
        "base": {"revision": revision if mark else None, "digest": None if mark or "/" in model else model},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": before.get("started", now),
        "resumed": [*before.get("resumed", []), now] if before else [],
        "git": git_state(),
    }


def utc_now() -> str:
    """The time in UTC, to the second.

    Example:
        >>> utc_now()[10], utc_now()[-1]
        ('T', 'Z')
    """
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that a result depends on, by name."""
    import peft
    import torch
    import transformers

    found = {"lrlora": lrlora, "peft": peft, "transformers": transformers, "torch": torch}
    return {name: str(module.__version__) for name, module in found.items()}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """The commit that a folder is at, and whether tracked files differ from it; None outside git, or without git.

    Files that git does not track do not count: a run folder is often one. No hook is run, nothing is written.

    Args:
        folder: any folder of a work tree; the working folder if None.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    return {"commit": commit, "is_dirty": None if changed is None else bool(changed)}


def _git(folder: Path | None, *words: str) -> str | None:
    try:
        ended = subprocess.run(
            [*_GIT, *words],
            cwd=folder,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None
