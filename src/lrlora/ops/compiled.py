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

from lrlora.method.fast import Phi
from lrlora.ops import eager
from lrlora.ops.passes import Factors, Passes

TILE_ENTRIES = 1 << 19
"""Entries of a tile: large enough to hide the cost of a call, small enough for Z and dZ to stay in the shared cache."""

FROM_ENTRIES = 1 << 14
"""Smaller matrices are not worth a compilation: `auto` leaves them to `eager`."""

_log = logging.getLogger(__name__)


class Compiler:
    """What is compiled, and why it is not any more, if so.

    Attributes:
        has_run: the kinds of arguments for which a compilation has run.
        failure: what went wrong, after which the plain passes run instead; None: nothing did.
    """

    def __init__(self) -> None:
        self.has_run: set[tuple[Any, ...]] = set()
        self.failure: str | None = None
        self._compilation = functools.cache(_compilation)

    def passes(self) -> Passes:
        """The passes through these compilations."""
        return Passes(
            "compiled",
            self.why_not,
            eager.signs,
            eager.numbers,
            self.write_weight,
            self.write_weight_and_gradients,
            TILE_ENTRIES,
        )

    def why_not(self, A: Tensor) -> str | None:
        """Why the compiled passes cannot run; None where they can."""
        if A.device.type != "cpu":
            return f"the compiled passes are for CPUs, got {A.device.type}"
        if os.environ.get("TORCH_COMPILE_DISABLE", "0") == "1" or os.environ.get("TORCHDYNAMO_DISABLE", "0") == "1":
            return "torch.compile is switched off in the environment"
        return _why_no_compiler(os.environ.get("CXX")) or self.failure

    def write_weight(self, out: Tensor, W0: Tensor | None, factors: Factors) -> None:
        """As `eager.write_weight`."""
        self._call(eager.write_weight_of_product, factors.phi, out, factors.B @ factors.A, W0)

    def write_weight_and_gradients(self, G: Tensor, dZ: Tensor, W0: Tensor | None, factors: Factors) -> Tensor | None:
        """As `eager.write_weight_and_gradients`."""
        return self._call(eager.write_both_of_product, factors.phi, G, dZ, factors.B @ factors.A, W0)

    def _call(self, function: Callable[..., Any], phi: Phi, *tensors: Tensor | None) -> Any:
        written = tensors[0]
        assert written is not None
        if self.failure or min(written.shape) < 2:
            # sizes 0 and 1 would each be a compilation of their own
            return function(*tensors, phi)
        dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        key = (function, phi.form, phi.carried is not None, None if phi.c is None else len(phi.c), *dtypes)
        compilation = self._compilation(*key)
        if key in self.has_run:
            return compilation(*tensors, phi)
        try:
            result = compilation(*tensors, phi)
        except RuntimeError as error:  # what torch raises for every failure to compile
            said = " ".join(str(error).split()).split(" Set TORCHDYNAMO")[0][:300]
            self.failure = f"torch.compile failed: {said}"
            _log.warning("LR-LoRA runs its plain passes, which are several times slower: %s", self.failure)
            return function(*tensors, phi)
        self.has_run.add(key)
        return result


@functools.cache
def _why_no_compiler(chosen: str | None) -> str | None:
    """Why nothing can be compiled on this machine; said once."""
    names = [chosen] if chosen else ["g++", "clang++"]
    if any(shutil.which(name) for name in names):
        return None
    reason = f"no C++ compiler found (looked for {', '.join(names)})"
    _log.warning("LR-LoRA runs its plain passes, which are several times slower: %s", reason)
    return reason


def _compilation(function: Any, form: str, is_carried: bool, *kinds: Any) -> Callable[..., Any]:
    """One compilation per form, carrier or none, K, dtypes and presence of W0.

    Each has a code object of its own: torch counts compilations per code object, and gives up after eight.
    """
    function = inspect.unwrap(function)
    code = function.__code__.replace(co_name=f"{function.__name__}_{form}{'_carried' * is_carried}")
    own = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__)
    return torch.compile(own, dynamic=True, fullgraph=True)


PASSES = Compiler().passes()
