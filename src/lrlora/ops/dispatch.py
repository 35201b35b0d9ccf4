"""Which backend computes the passes of phi, and why; and what it is given."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lrlora.method.carrier import Carrier
from lrlora.method.nonlinearity import Form
from lrlora.method.update import at_least_float32
from lrlora.ops import compiled, eager

Implementation = Literal["auto", "definition", "eager", "compiled", "triton"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
"""What `impl` can be; "auto" takes the fastest that can run, and each of the others can be asked for."""


def choose(impl: Implementation, A: Tensor, B: Tensor) -> tuple[Any, str]:
    """The module that computes the passes, and why it was chosen.

    Args:
        impl: as for `adapted_linear`.
        A: first factor [r, in], which tells device, precision and size.
        B: second factor [out, r].

    Raises:
        ValueError: an unknown impl, or one that cannot run here; the message says why.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl == "eager":
        return eager, "eager was asked for"
    if impl in ("compiled", "triton"):
        module, reason = _backend(impl, A)
        if reason is not None:
            raise ValueError(f"impl={impl!r} cannot run: {reason}; pass impl='auto'")
        return module, f"{impl} was asked for"
    if torch.compiler.is_compiling():
        return eager, "eager, because the whole model is being compiled around it"
    if A.device.type == "cpu" and A.shape[1] * B.shape[0] < compiled.FROM_ENTRIES:
        return eager, "eager, because so small a matrix is not worth a compilation"
    name = "compiled" if A.device.type == "cpu" else "triton"
    module, reason = _backend(name, A)
    return (module, name) if reason is None else (eager, f"eager, because {reason}")


def _backend(name: str, A: Tensor) -> tuple[Any, str | None]:
    """A backend and why it cannot run, if so."""
    if name == "compiled":
        return compiled, compiled.why_not(A.device)
    if A.device.type != "cuda":
        return None, f"the Triton kernels are for CUDA, got {A.device.type}"
    try:
        # not at the top: a machine without a GPU need not have Triton
        from lrlora.ops import triton
    except ImportError as error:
        return None, f"Triton cannot be imported ({error})"
    return triton, triton.why_not(at_least_float32(A).dtype)


def signs_of(
    backend: Any, carrier: Carrier | None, A: Tensor, B: Tensor, rows: Tensor | None = None
) -> tuple[float, Tensor | None, Tensor | None]:
    """Offset of a carrier, and the two tensors that a backend makes its signs from; one by one for torch.compile."""
    if carrier is None:
        return 0.0, None, None
    return carrier.offset, *backend.signs(carrier, A, B, rows)


def factors_in_precision(
    backend: Any,
    A: Tensor,
    B: Tensor,
    c: Tensor | None,
    tau: Tensor | float,
    scale: float,
    phi: Form,
    offset: float,
    *signs: Tensor | None,
) -> tuple[Any, ...]:
    """A, B and c in the precision in which Z and phi are computed, and the other numbers of phi that a backend needs.

    The signs are those of `signs_of`.
    """
    A, B = at_least_float32(A), at_least_float32(B)
    # detached: a parameter, or a tensor with a graph, would each need a compilation of its own
    c = None if c is None else c.detach().to(A.dtype)
    return A, B, c, backend.numbers(tau, scale, phi, A, c, offset, *signs)
