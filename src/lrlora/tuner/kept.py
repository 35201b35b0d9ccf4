"""The adapted weight of a layer, kept between calls in evaluation: generation does not make it anew for every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPARED_SHARE = 0.1
"""A weight is kept only if this share of the device's memory stays free beside it."""


class KeptWeight:
    """Holds at most one weight, with what it was made from.

    It is dropped when its layer enters a mode (train, eval), and made anew when what it was made from has changed. On a
    CPU the small factors are compared by value. Elsewhere that would make the host wait, so a change is noticed by
    autograd's version counters, which writing through `.data` leaves alone: call `model.eval()` after doing that.
    """

    def __init__(self) -> None:
        self._sources: list[_Source] = []
        self._rest: tuple[object, ...] = ()
        self._weight: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> KeptWeight:
        return KeptWeight()

    def __getstate__(self) -> dict[str, object]:
        """Nothing is kept in a copy, or in a file."""
        return KeptWeight().__dict__

    def drop(self) -> None:
        """Forget the weight."""
        self._sources, self._rest, self._weight = [], (), None

    def get(self, sources: Sequence[Tensor | None], rest: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        """The weight made from these tensors and these other settings: the kept one, or a new one from `make`."""
        present = [tensor for tensor in sources if tensor is not None]
        is_same = len(present) == len(self._sources) and rest == self._rest
        if (
            self._weight is not None
            and is_same
            and all(s.is_still(t) for s, t in zip(self._sources, present, strict=True))
        ):
            return self._weight
        self.drop()
        weight = make()
        if _has_room_beside(weight):
            self._sources, self._rest, self._weight = [_Source.of(t, weight) for t in present], rest, weight
        return weight


@dataclass
class _Source:
    tensor: Tensor
    address: int
    version: int
    value: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor, weight: Tensor) -> _Source:
        # W0 is as large as the weight: comparing it by value would cost as much as the product
        is_small = tensor.numel() < weight.numel() and tensor.device.type == "cpu"
        return cls(tensor, tensor.data_ptr(), _version(tensor), tensor.detach().clone() if is_small else None)

    def is_still(self, tensor: Tensor) -> bool:
        is_same = tensor is self.tensor and tensor.data_ptr() == self.address and _version(tensor) == self.version
        return is_same and (self.value is None or torch.equal(tensor, self.value))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _has_room_beside(weight: Tensor) -> bool:
    if weight.device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(weight.device)
    # what torch's allocator holds in reserve is free as well
    free += torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
    return free > SPARED_SHARE * total
