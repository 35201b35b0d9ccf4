"""The same passes through torch.compile: one trip through memory each, vectorised, for a CPU with a C++ compiler.

The shapes are dynamic: all layers of a model share one compilation. It takes some ten seconds the first time on a
machine, and about one second from torch's cache on disk afterwards.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import shutil
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lrlora.method.fast import Knee
from lrlora.method.nonlinearity import Form
from lrlora.ops import eager, tiles
from lrlora.ops.eager import numbers, signs
from lrlora.ops.tiles import Passes

__all__ = ["gradients", "numbers", "signs", "weight", "why_not"]

TILE_ENTRIES = 1 << 19
"""Entries of a tile: large enough to hide the cost of a call, small enough for Z and dZ to stay in the shared cache."""

FROM_ENTRIES = 1 << 14
"""Smaller matrices are not worth a compilation: `auto` leaves them to `eager`."""

_log = logging.getLogger(__name__)


def why_not(device: torch.device) -> str | None:
    """Why the compiled passes cannot run; None where they can."""
    if device.type != "cpu":
        return f"the compiled passes are for CPUs, got {device.type}"
    if os.environ.get("TORCH_COMPILE_DISABLE", "0") == "1" or os.environ.get("TORCHDYNAMO_DISABLE", "0") == "1":
        return "torch.compile is switched off in the environment"
    return _why_not_compiler(os.environ.get("CXX"))


@functools.cache
def _why_not_compiler(chosen: str | None) -> str | None:
    names = [chosen] if chosen else ["g++", "clang++"]
    if any(shutil.which(name) for name in names):
        return _failure[0] if _failure else None
    reason = f"no C++ compiler found (looked for {', '.join(names)})"
    _log.warning("LR-LoRA runs its plain passes, which are several times slower: %s", reason)
    return reason


# what went wrong when this process compiled, if it did; and which compilations have run
_failure: list[str] = []
_has_run: set[Any] = set()


def write_weight(out: Tensor, A: Tensor, B: Tensor, W0: Tensor | None, c: Tensor | None, knee: Knee, phi: Form) -> None:
    """As `eager.write_weight`."""
    _call(eager.write_weight_of_product, out, B @ A, W0, c, knee, phi)


def write_weight_and_gradients(
    G: Tensor, dZ: Tensor, A: Tensor, B: Tensor, W0: Tensor | None, c: Tensor | None, knee: Knee, phi: Form
) -> Tensor | None:
    """As `eager.write_weight_and_gradients`."""
    return _call(eager.write_both_of_product, G, dZ, B @ A, W0, c, knee, phi)


PASSES = Passes(write_weight, write_weight_and_gradients, TILE_ENTRIES)


def weight(W0, A, B, c, knee, phi, dtype) -> Tensor:
    """As `tiles.weight`."""
    return tiles.weight(PASSES, W0, A, B, c, knee, phi, dtype)


def gradients(G, W0, A, B, c, knee, phi) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `tiles.gradients`."""
    return tiles.gradients(PASSES, G, W0, A, B, c, knee, phi)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    written, knee, phi = arguments[0], arguments[-2], arguments[-1]
    if _failure or min(written.shape) < 2:
        # sizes 0 and 1 would each be a compilation of their own
        return function(*arguments)
    kinds = [None if t is None else (t.dtype, t.numel() if t.ndim == 1 else 0) for t in arguments[:-2]]
    key = (function, phi, knee.carried is not None, *kinds)
    compilation = _compilation(*key)
    if key in _has_run:
        return compilation(*arguments)
    try:
        result = compilation(*arguments)
    except RuntimeError as error:  # what torch raises for every failure to compile
        _failure.append(f"torch.compile failed: {' '.join(str(error).split()).split(' Set TORCHDYNAMO')[0][:300]}")
        _why_not_compiler.cache_clear()
        _log.warning("LR-LoRA runs its plain passes, which are several times slower: %s", _failure[0])
        return function(*arguments)
    _has_run.add(key)
    return result


@functools.cache
def _compilation(function: Any, phi: str, is_carried: bool, *kinds: Any) -> Callable[..., Any]:
    """One compilation per form, carrier or none, K, dtypes and presence of W0.

    Each has a code object of its own: torch counts compilations per code object, and gives up after eight.
    """
    function = inspect.unwrap(function)
    code = function.__code__.replace(co_name=f"{function.__name__}_{phi}{'_carried' * is_carried}")
    own = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    return torch.compile(own, dynamic=True, fullgraph=True)
