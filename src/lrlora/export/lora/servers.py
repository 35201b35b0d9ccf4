"""Exporting for one server: what it would not take is refused, and the command that serves the export is printed."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.export.lora.choose import UNIFORM_RANKS
from lrlora.export.lora.llama_cpp import why_llama_cpp_differs
from lrlora.export.lora.vllm import why_vllm_refuses
from lrlora.saved.base import IMAGE_CLS

SERVERS = ("vllm", "llama.cpp")
"""What `lrlora export --for` takes."""


def check_server(
    server: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], task: str | None = None
) -> None:
    """Refuse a LoRA that the server would reject, or compute otherwise than PEFT.

    A rank above vLLM's default limit is no reason: `serving` names the flag.

    Args:
        server: one of SERVERS.
        config: adapter_config.json.
        shapes: of the tensors of adapter_model.safetensors.
        task: that the adapter was trained for; neither server has image classifiers.

    Raises:
        InputError: with every reason, and what to do about each.
    """
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
    name, base = folder.name, shlex.quote(base)
    where, gguf = shlex.quote(str(folder)), shlex.quote(f"{folder}.gguf")
    if server == "vllm":
        limit = next((allowed for allowed in UNIFORM_RANKS if allowed >= rank), math.inf)
        return f"vllm serve {base} --enable-lora --max-lora-rank {limit} --lora-modules {shlex.quote(name)}={where}"
    return f"python convert_lora_to_gguf.py {where} --base {base} --outfile {gguf}"
