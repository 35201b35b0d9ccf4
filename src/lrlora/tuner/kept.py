"""The update of a layer, cached between calls without gradients: generation does not compute it for every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrlora.ops import is_transformed

SPARED_SHARE = 0.1
"""An update is cached only if this fraction of the device's memory stays free afterwards."""


FEW_ROWS = 64
"""Below so many rows, as in generation, x is multiplied with W0 and with the cached update: adding the two writes a
matrix and reads three, a second product reads one. With more rows the sum pays."""


class _Kept(NamedTuple):
    sources: list[Tensor]
    scale: float
    update: Tensor


class KeptUpdate:
    """Holds one update per precision, each with copies of what it was made from.

    An update is used again only where A, B, c and tau are equal to these copies, entry by entry, on any device and
    however they were written; the base weight is no part of it. On a GPU that makes the host wait once per layer and
    call. An entry is never changed after it was made: threads can share it.
    """

    def __init__(self) -> None:
        self._entries: dict[torch.dtype, _Kept] = {}
        self._is_asked = False

    def __reduce__(self) -> tuple[type[KeptUpdate], tuple[()]]:
        """A copy, or a file, begins with an empty cache."""
        return KeptUpdate, ()

    def drop(self) -> None:
        """Free the updates."""
        self._entries = {}
        self._is_asked = False

    def is_filled(self) -> bool:
        """Whether it holds an update, of whatever factors."""
        return bool(self._entries)

    def is_for(self, A: Tensor, is_training: bool, rows: int | None = None) -> bool:
        """Whether a call uses the cached update, and makes it where there is none.

        In evaluation it does. In training, as in the rollouts of trl's GRPO, only for few rows and from the second call
        without gradients in a row on: reentrant checkpointing makes one such call and then one with gradients, and an
        update cached for it would only fill memory. A call with gradients frees it.

        Args:
            A: the layer's first factor.
            is_training: whether the layer is in training mode.
            rows: of the layer's input; None where the update itself is asked for.
        """
        if why_not_kept(A) is None:
            if not is_training:
                return True
            if rows is None or rows >= FEW_ROWS:
                return False
            was_asked, self._is_asked = self._is_asked, True
            return was_asked
        if is_training and not torch.compiler.is_compiling():
            self.drop()
        return False

    def get(
        self,
        sources: Sequence[Tensor | None],
        scale: float,
        dtype: torch.dtype,
        make: Callable[[list[Tensor | None]], Tensor],
    ) -> Tensor:
        """The update in this precision: the cached one, or a new one that `make` computes from the sources."""
        present = [tensor.detach() for tensor in sources if tensor is not None]
        entry = self._entries.get(dtype)
        if entry is not None and entry.scale == scale and _are_equal(entry.sources, present):
            return entry.update
        # from the copies, not from the tensors: another thread may write into these
        copies = iter([tensor.clone() for tensor in present])
        held = [None if tensor is None else next(copies) for tensor in sources]
        update = make(held)
        if _has_room_beside(update):
            self._entries = {
                **self._entries,
                dtype: _Kept([tensor for tensor in held if tensor is not None], scale, update),
            }
        return update


def why_not_kept(tensor: Tensor) -> str | None:
    """Why the update of a layer with this factor A cannot be cached now; None where it can."""
    if torch.is_grad_enabled():
        return "gradients are wanted"
    if torch.compiler.is_compiling():
        return "the model is being compiled"
    if is_transformed():
        return "a transform of torch.func runs"
    if tensor.device.type == "meta":
        return "the factors hold no values"
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is being recorded, which cannot branch on values"
    return None


def _are_equal(held: list[Tensor], present: list[Tensor]) -> bool:
    return len(held) == len(present) and all(
        a.device == b.device and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(held, present, strict=True)
    )


def _has_room_beside(update: Tensor) -> bool:
    if update.device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(update.device)
    # what torch's allocator holds in reserve is free as well
    free += torch.cuda.memory_reserved(update.device) - torch.cuda.memory_allocated(update.device)
    return free > SPARED_SHARE * total
