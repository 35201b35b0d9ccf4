"""What a backend is: the adapted weight, the gradients of its factors, and what they are computed from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrlora.method.carrier import Carrier
from lrlora.method.nonlinearity import Form
from lrlora.method.update import at_least_float32


class Factors(NamedTuple):
    """What scale phi(B A) is computed from, in the precision in which it is computed.

    Args:
        A: first factor [r, in], float32 or float64.
        B: second factor [out, r], or its rows of a tile.
        phi: form, c, knee, scale and signs, as `numbers` of the backend made them (`fast.Phi`, `triton.Numbers`).
    """

    A: Tensor
    B: Tensor
    phi: Any

    def of_rows(self, rows: slice) -> Factors:
        """The same for a tile of rows of the matrix."""
        return Factors(self.A, self.B[rows], self.phi.of_rows(rows))


@dataclass(frozen=True)
class Passes:
    """A backend; `lrlora.ops.eager` is the one that says in plain torch what each function computes.

    Plain torch and Triton compute a tile of rows at a time: `in_tiles` makes theirs.

    Args:
        name: under which `impl` asks for it.
        why_not: of a first factor A: why the passes cannot run on its device in its precision; None where they can.
        signs: of a carrier, A, B and the numbers of B's rows (None: 0, 1, ...): two tensors that hold its signs.
        numbers: of phi, in the dtype of `like`.
        weight: of W0 (or None), the factors and a dtype: [W0 +] scale phi(B A) [out, in] in this dtype.
        gradients: of G = dL/dW [out, in], W0 (or None) and the factors: dL/dA, dL/dB and dL/dc, which is None for form
            "sine"; G then holds the weight.
        nonzero_rows: of dY [*batch, out] and the factors: the numbers of its rows, counted through the batch, that
            are not all zero, where it pays to leave the others out; None: all rows are computed.
    """

    name: str
    why_not: Callable[[Tensor], str | None]
    signs: Callable[[Carrier, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    numbers: Callable[..., Any]
    weight: Callable[[Tensor | None, Factors, torch.dtype], Tensor]
    gradients: Callable[[Tensor, Tensor | None, Factors], tuple[Tensor, Tensor, Tensor | None]]
    nonzero_rows: Callable[[Tensor, Factors], Tensor | None] = lambda dy, factors: None


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """torch.autocast switched off; nothing at all where it is off, since entering it takes longer than a small pass."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def signs_of(
    passes: Passes, carrier: Carrier | None, A: Tensor, B: Tensor, rows: Tensor | None = None
) -> tuple[float, Tensor | None, Tensor | None]:
    """Offset of a carrier, and the two tensors that hold its signs; one by one for torch.compile."""
    if carrier is None:
        return 0.0, None, None
    return carrier.offset, *passes.signs(carrier, A, B, rows)


def factors_in_precision(
    passes: Passes,
    A: Tensor,
    B: Tensor,
    c: Tensor | None,
    tau: Tensor | float,
    scale: float,
    phi: Form,
    offset: float,
    *signs: Tensor | None,
) -> Factors:
    """The factors in the precision in which Z and phi are computed; offset and signs are those of `signs_of`."""
    A, B = at_least_float32(A), at_least_float32(B)
    # detached: a parameter, or a tensor with a graph, would each need a compilation of its own
    c = None if c is None else c.detach().to(A.dtype)
    return Factors(A, B, passes.numbers(c, tau, scale, phi, A, offset, *signs))
