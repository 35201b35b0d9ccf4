"""LR-LoRA's operations, fast: the signatures of `lrlora.method.update` with one more argument, `impl`.

See README.md in this folder for the derivation and the costs.
"""

from lrlora.ops.dispatch import IMPLEMENTATIONS, by_definition, choose, is_transformed
from lrlora.ops.experts import experts_weight
from lrlora.ops.linear import adapted_linear, adapted_weight, delta_weight

__all__ = [
    "IMPLEMENTATIONS",
    "adapted_linear",
    "adapted_weight",
    "by_definition",
    "choose",
    "delta_weight",
    "experts_weight",
    "is_transformed",
]
