"""What the optimizer and the training loop need to know of an LR-LoRA model: parameter groups, and phi's knee tau."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from lrlora.tuner.model import deltas
from lrlora.tuner.theta import GAIN


def param_groups(
    model: nn.Module,
    lr: float,
    c_lr: float | None = None,
    weight_decay: float = 0.0,
    b_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: separate learning rates for c or B, and weight decay for matrices only.

    A trainer trains c well without them: theta, from which c comes, makes it move ten times as fast as A and B
    (`LRLoraDelta`), and weight decay pulls it to where it started.

    Args:
        model: a PeftModel with LR-LoRA, or any model (then there is no group for c).
        lr: learning rate of everything but c, and B where it has its own.
        c_lr: learning rate of c, the rate that an adaptive optimizer such as Adam moves c at; None means 10 lr.
        weight_decay: of matrices; biases, norms and c get none.
        b_lr: learning rate of B, several times lr in LoRA+ (arXiv:2402.12354); None means lr.

    Returns:
        At most four groups of trainable parameters, each parameter in one of them.

    Example:
        optimizer = torch.optim.AdamW(lrlora.param_groups(model, lr=1e-3, c_lr=1e-2))
    """
    c_lr = GAIN * lr if c_lr is None else c_lr
    of_phi: dict[float, set[int]] = {}
    of_B = set()
    for _, _, _, delta in deltas(model):
        of_B.add(id(delta.B))
        if isinstance(delta.theta, nn.Parameter):
            of_phi.setdefault(c_lr if delta.config_version == 1 else c_lr / GAIN, set()).add(id(delta.theta))
    places = [(lr, weight_decay, lambda p: p.ndim > 1), (lr, 0.0, lambda p: p.ndim <= 1)]
    if b_lr is not None:
        places.insert(0, (b_lr, weight_decay, lambda p: id(p) in of_B))
    for rate, members in of_phi.items():
        places.insert(0, (rate, 0.0, lambda p, members=members: id(p) in members))
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay, "lr": rate} for rate, decay, _ in places]
    for parameter in model.parameters():
        if parameter.requires_grad:
            group = next(g for g, (_, _, is_here) in zip(groups, places, strict=True) if is_here(parameter))
            group["params"].append(parameter)
    return [group for group in reversed(groups) if group["params"]]


def follow_tau(model: nn.Module, step: int, total_steps: int) -> bool:
    """Set tau = kappa RMS(B A) for every trainable adapter with tau = "auto", if `step` is in the schedule's window.

    The window begins at `tau_warmup_steps`, before which phi is the identity. It ends when the fraction `tau_follow` of
    all steps is done, and holds at least one step; tau then stays. Call this before the forward pass of every optimizer
    step; `TauCallback` does. Tau is set inside that forward pass, where A and B are whole also under FSDP and ZeRO-3.
    It depends only on the step and the weights, so a resumed run does what an uninterrupted one does.

    Args:
        model: a PeftModel with LR-LoRA.
        step: optimizer steps done so far.
        total_steps: optimizer steps of the whole training.

    Returns:
        Whether any tau is set in the next forward pass.
    """
    is_moving = False
    for _, layer, adapter_name, delta in deltas(model):
        config = _config_of(model, adapter_name)
        is_trained = adapter_name in layer.active_adapters and delta.A.requires_grad
        if config is None or config.tau != "auto" or not is_trained:
            continue
        first = max(config.tau_warmup_steps, 1)
        last = max(first, int(config.tau_follow * total_steps))
        moves_now = first <= step <= last
        # at the beginning, a fresh adapter that took over another's tau starts as plain LoRA again
        delta.follow_knee(config.kappa if moves_now else math.inf if step == 0 else None)
        is_moving = is_moving or moves_now
    return is_moving


def _config_of(model: nn.Module, adapter_name: str):
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if isinstance(configs, dict) and adapter_name in configs:
            return configs[adapter_name]
    return None
