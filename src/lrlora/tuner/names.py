"""What a module's dotted name says: its block, its type within the block, and whether it is attention or MLP."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["attention", "mlp", "other"]

# names of transformers' models; a part of the dotted name must match as a whole
_ATTENTION = re.compile(
    r"attn|attention|self_attn|self_attention|cross_attn|encoder_attn|enc_?dec_?attention|selfattention|attentions?"
    r"|[qkvo]_?proj|query|key|value|query_key_value|qkv|qkv_proj|c_attn|out_proj|in_proj_qkv|[qkvo]_lin|out_lin",
    re.IGNORECASE,
)
_MLP = re.compile(
    r"mlp|ffn?|fc_?\d|fc|feed_?forward|dense_?relu_?dense|densereludense|intermediate|experts?|block_sparse_moe|moe"
    r"|(gate|up|down|gate_up)_proj|dense_h_to_4h|dense_4h_to_h|wi(_\d)?|lin[12]|w[123]|c_fc",
    re.IGNORECASE,
)


def block_of(name: str) -> int | None:
    """Index of the block that a module is in: the first whole number in its name; None outside all blocks.

    Example:
        >>> block_of("bert.encoder.layer.3.attention.self.query")
        3
    """
    numbers = [part for part in name.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None


def type_of(name: str) -> str:
    """Name of a module within its block, the same in every block.

    Example:
        >>> type_of("bert.encoder.layer.3.attention.self.query")
        'attention.self.query'
    """
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join("*" if p.isdigit() else p for p in parts[position + 1 :])
    return name


def kind_of(name: str) -> Kind:
    """ "attention", "mlp" or "other", by the names that transformers' models use inside a block.

    Example:
        >>> [kind_of(f"encoder.layer.0.{n}") for n in ("attention.output.dense", "output.dense", "mixer.in_proj")]
        ['attention', 'mlp', 'other']
    """
    if block_of(name) is None:
        return "other"
    within = type_of(name)
    parts = within.split(".")
    # the outermost telling part decides: attention.output.dense is attention, mlp.experts.w1 is MLP
    for part in parts:
        if _ATTENTION.fullmatch(part):
            return "attention"
        if _MLP.fullmatch(part):
            return "mlp"
    # the BERT family calls the second layer of its MLP output.dense
    return "mlp" if within == "output.dense" else "other"
