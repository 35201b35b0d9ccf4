"""What is trained is float32 on a base in any precision: a step of AdamW is smaller than bfloat16's rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrlora.errors import InputError

_HALF = (torch.bfloat16, torch.float16)
_HEADS = ("classifier", "score", "qa_outputs")


def keep_in_float32(model: Any) -> None:
    """Turn modules that are trained whole into float32 where the base is bfloat16 or float16; adapters are already.

    Such a module gets its input in float32. Its output goes on in the type of the base, but that of a head, which
    nothing of the base reads.

    Args:
        model: a PeftModel; changed in place. Nothing changes on a base in float32.

    Raises:
        InputError: parameters of the base itself that are trained, such as biases, and are not float32.
    """
    output = model.get_base_model().get_output_embeddings() if hasattr(model, "get_base_model") else None
    for name, module in model.named_modules():
        held = getattr(module, "modules_to_save", None)
        for whole in held.values() if isinstance(held, nn.ModuleDict) else ():
            types = {p.dtype for p in whole.parameters() if p.dtype in _HALF}
            if types:
                whole.to(torch.float32)
                whole.register_forward_pre_hook(_as_float32, with_kwargs=True)
                if not (name.split(".")[-1] in _HEADS or module is output):
                    whole.register_forward_hook(_as(types.pop()))
    half = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype in _HALF]
    if half:
        raise InputError(
            f"{half[0]} of the base would be trained in {str(model.get_parameter(half[0]).dtype).split('.')[-1]} "
            f"({len(half)} such parameters), which rounds its steps away; load the base with --dtype float32, or leave "
            "out what trains it (--bias)"
        )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _as_float32(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(_cast(v, torch.float32) for v in given), {k: _cast(v, torch.float32) for k, v in named.items()}


def _as(dtype: torch.dtype) -> Any:
    return lambda module, given, output: _cast(output, dtype)
