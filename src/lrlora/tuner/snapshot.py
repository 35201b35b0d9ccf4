"""A base weight as it was before merging, in any storage format, to be put back bit for bit."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class WeightSnapshot:
    """Holds a base layer's weight: a copy on the CPU of a plain one; of a quantised one the small object itself.

    bitsandbytes keeps the scales of its 8-bit weights on the layer and drops them when a weight is exchanged, and
    PEFT's requantisation writes into the attributes of the old 4-bit weight: both are kept too.
    """

    def __init__(self, base: Any, name: str, is_quantised: bool) -> None:
        self._base, self._name = base, name
        self._is_quantised = is_quantised
        if not is_quantised:
            self._weight: Tensor = getattr(base, name).data.to("cpu", copy=True)
            return
        self._weight = base.weight
        # reading a 4-bit weight may change data and quant_state in place, see `unpack`
        self._data = base.weight.data
        self._attributes = {k: copy.deepcopy(v) if k == "quant_state" else v for k, v in vars(base.weight).items()}
        self._state = dict(vars(base.state)) if hasattr(base, "state") else {}

    def restore(self) -> nn.Module:
        """Put the weight back, a plain one in its present precision; returns the base layer, which may be another."""
        if not self._is_quantised:
            weight = getattr(self._base, self._name)
            weight.data = self._weight.to(weight.device, weight.dtype)
            return self._base
        self._base.weight = self._weight
        self._weight.data = self._data
        vars(self._weight).update(self._attributes)
        if hasattr(self._base, "quant_state"):
            self._base.quant_state = self._attributes.get("quant_state")
        if self._state:
            vars(self._base.state).update(self._state)
        return self._base


def unpack(base: Any) -> None:
    """Undo the packing that bitsandbytes applies to 4-bit weights when they are evaluated on a CPU with AVX512-BF16.

    PEFT's dequantisation reads such a weight as if it were not packed, and returns noise. Asking for the state dict is
    how bitsandbytes unpacks it (its scales come back rounded to bfloat16).
    """
    if getattr(getattr(base.weight, "quant_state", None), "packing_format_for_cpu", False):
        base.state_dict()
