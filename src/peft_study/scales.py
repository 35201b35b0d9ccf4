"""The scale s of an arm's update, and which arms differ in it: at one learning rate a larger s takes larger steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_ALPHAS = ("lora_alpha", "randlora_alpha", "alpha")
_KNOWN = ("LORA", "ADALORA", "RANDLORA", "LOHA", "LRLORA")
"""Methods of PEFT whose update has the factor alpha / r; of others an alpha can mean something else."""


@dataclass(frozen=True)
class Scale:
    """s = alpha / r, or alpha / sqrt(r) with rsLoRA.

    Args:
        rank: r; of AdaLoRA the first one, which it divides by.
        s: the factor of the update.
    """

    rank: int
    s: float


def scale_of(adapter: Mapping[str, Any] | None) -> Scale | None:
    """The scale of a method's config as PEFT saves it; modules of a rank_pattern or alpha_pattern have others.

    Args:
        adapter: the `adapter` of a row, or `config.to_dict()`; None: no adapter.

    Returns:
        None for methods that have no alpha (full fine-tuning, HiRA, VeRA, FourierFT, PEANuT), or whose alpha is not
        known here to be divided by r.

    Example:
        >>> scale_of({"r": 32, "lora_alpha": 16})
        Scale(rank=32, s=0.5)
    """
    names = [name for name in _ALPHAS if name in (adapter or {})]
    if adapter is None or not names or str(adapter.get("peft_type", "LORA")).rpartition(".")[-1] not in _KNOWN:
        return None
    rank, alpha = adapter.get("init_r", adapter["r"]), adapter[names[0]]
    # LR-LoRA's config leaves alpha = 2 r open until it is placed
    alpha = 2 * rank if alpha is None else alpha
    return Scale(rank, alpha / (rank**0.5 if adapter.get("use_rslora") else rank))


def scale_lines(scales: Iterable[tuple[str, Scale | None]]) -> list[str]:
    """A line for every rank at which arms have different scales, which names them all.

    Args:
        scales: arms and their scales; an arm may occur several times.
    """
    by_rank: dict[int, dict[str, list[str]]] = {}
    for arm, scale in dict.fromkeys(scales):
        if scale is not None:
            by_rank.setdefault(scale.rank, {}).setdefault(f"{scale.s:.4g}", []).append(arm)
    return [
        f"at r = {rank} the arms have different scales s: "
        + "; ".join(f"{s} ({', '.join(arms)})" for s, arms in sorted(of_s.items(), key=lambda pair: float(pair[0])))
        + "; s works like a learning rate, so give them the same alpha, or rates that make up for it"
        for rank, of_s in sorted(by_rank.items())
        if len(of_s) > 1
    ]
