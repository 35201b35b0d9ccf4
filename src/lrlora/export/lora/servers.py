"""Exporting for one server: what it would not take is refused, and the command that serves the export is printed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.export.lora.choose import UNIFORM_RANKS, uniform_rank
from lrlora.export.lora.llama_cpp import why_llama_cpp_differs
from lrlora.export.lora.vllm import why_vllm_refuses
from lrlora.saved.base import IMAGE_CLS

SERVERS = ("vllm", "llama.cpp")
"""What `lrlora export --for` takes."""


def check_known(server: str) -> None:
    """Refuse a server that is none of SERVERS.

    Raises:
        InputError: names those that are.
    """
    if server not in SERVERS:
        raise InputError(f"--for takes {' or '.join(SERVERS)}, got {server!r}")


def check_server(
    server: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], task: str | None = None
) -> None:
    """Refuse a server that is not known, and a LoRA that it would reject, or compute otherwise than PEFT.

    A rank above vLLM's default limit is no reason: `serving` names the flag.

    Args:
        server: one of SERVERS.
        config: adapter_config.json.
        shapes: of the tensors of adapter_model.safetensors.
        task: that the adapter was trained for; neither server has image classifiers.

    Raises:
        InputError: with every reason, and what to do about each.
    """
    check_known(server)
    if task == IMAGE_CLS:
        raise InputError(f"--for {server}: it serves no image classifiers; leave --for out")
    if server == "vllm":
        reasons = why_vllm_refuses(dict(config), dict(shapes), max_rank=UNIFORM_RANKS[-1])
    else:
        reasons = why_llama_cpp_differs(dict(config))
    if reasons:
        raise InputError(f"--for {server}: {'; '.join(reasons)}")


def serving(server: str, base: str, folder: Path, rank: int) -> str:
    """The command that serves an export.

    Example:
        >>> serving("vllm", "org/base", Path("lora"), 8)
        'vllm serve org/base --enable-lora --max-lora-rank 8 --lora-modules lora=lora'
    """
    base, name, where, gguf = (shlex.quote(word) for word in (base, folder.name, str(folder), f"{folder}.gguf"))
    if server == "vllm":
        limit = uniform_rank(rank)
        return f"vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules {name}={where}"
    return f"python convert_lora_to_gguf.py {where} --base {base} --outfile {gguf}"
