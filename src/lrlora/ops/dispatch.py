"""Which backend computes the passes of phi, and why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from lrlora.ops import eager, native
from lrlora.ops.passes import Passes

Implementation = Literal["auto", "definition", "eager", "native", "triton"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
"""What `impl` can be; "auto" takes the fastest that can run, and each of the others can be asked for."""

# by name: what `using` puts in the place of a backend
_instead: dict[str, Passes] = {}
# how many `by_definition` are open, in all threads
_opened = 0


def choose(impl: Implementation, A: Tensor, B: Tensor) -> tuple[Passes, str]:
    """The backend that computes the passes, and why it was chosen.

    Args:
        impl: as for `adapted_linear`.
        A: first factor [r, in], which tells device, precision and size.
        B: second factor [out, r].

    Raises:
        ValueError: an unknown impl, or one that cannot run here; the message says why.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if impl in ("eager", "native", "triton"):
        passes, reason = _backend(impl, A)
        if passes is None or reason is not None:
            raise ValueError(f"impl={impl!r} cannot run: {reason}; pass impl='auto'")
        return passes, f"{impl} was asked for"
    plain = _plain(A)
    if torch.compiler.is_compiling():
        return plain, "eager, because the whole model is being compiled around it"
    name = "native" if A.device.type == "cpu" else "triton"
    passes, reason = _backend(name, A)
    return (plain, f"eager, because {reason}") if passes is None or reason is not None else (passes, name)


@contextlib.contextmanager
def by_definition() -> Iterator[None]:
    """Inside, in every thread, an update is computed by its plain formula, which autograd can differentiate again.

    For second derivatives (`create_graph=True`), which the fast passes do not have. A layer then keeps several times K
    matrices of its size until the backward pass, and a step takes ten times as long. With gradient checkpointing, which
    computes the output again while it goes backward, the backward pass belongs inside as well. The transforms of
    torch.func (grad, vmap, jvp, hessian, ...) need no context: they get the plain formula by themselves.

    Example:
        with lrlora.by_definition():
            (gradient,) = torch.autograd.grad(model(**batch).loss, A, create_graph=True)
    """
    global _opened
    _opened += 1
    try:
        yield
    finally:
        _opened -= 1


def is_by_definition(impl: Implementation) -> bool:
    """Whether the plain formula is to be computed: asked for, in `by_definition`, or in a transform of torch.func."""
    if impl != "auto":
        return impl == "definition"
    return _opened > 0 or is_transformed()


def is_transformed() -> bool:
    """Whether a transform of torch.func runs now, whose tensors have no memory that the fast passes could read."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


@contextlib.contextmanager
def using(passes: Passes) -> Iterator[None]:
    """Inside, `choose` gives these passes where it would give those of the same name, in every thread.

    For tiles of another size, say.
    """
    before = _instead.copy()
    _instead[passes.name] = passes
    try:
        yield
    finally:
        _instead.clear()
        _instead.update(before)


def _backend(name: str, A: Tensor) -> tuple[Passes | None, str | None]:
    """A backend and why it cannot run, if so."""
    if name == "eager":
        return _plain(A), None
    if name == "native":
        passes = _instead.get(name, native.PASSES)
        return passes, passes.why_not(A)
    if A.device.type != "cuda":
        return None, f"the Triton kernels are for CUDA, got {A.device.type}"
    try:
        # not at the top: a machine without a GPU need not have Triton
        from lrlora.ops import triton
    except ImportError as error:
        return None, f"Triton cannot be imported ({error})"
    passes = _instead.get(name, triton.PASSES)
    return passes, passes.why_not(A)


def _plain(A: Tensor) -> Passes:
    return _instead.get("eager", eager.passes(A.device))
