"""What the optimizer and the training loop need to know of an LR-LoRA model: parameter groups, and the knee tau."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from lrlora.tuner.model import deltas


def param_groups(
    model: nn.Module, lr: float, c_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: matrices with weight decay, biases and norms without, and c with a rate of its own.

    c are the few coefficients of each phi: they live on a scale of 1, while A and B do not, so they want another rate;
    and weight decay would pull phi to 0, so they get none.

    Args:
        model: a PeftModel with LR-LoRA, or any model (then there is no group for c).
        lr: learning rate of everything but c.
        c_lr: learning rate of c; None means 10 lr.
        weight_decay: of matrices.

    Returns:
        At most three groups of trainable parameters, each parameter in one of them.

    Example:
        optimizer = torch.optim.AdamW(lrlora.param_groups(model, lr=1e-3, c_lr=1e-2))
    """
    coefficients = {id(delta.c) for _, _, _, delta in deltas(model) if isinstance(delta.c, nn.Parameter)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in coefficients and p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in coefficients and p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) in coefficients], "weight_decay": 0.0},
    ]
    for group, rate in zip(groups, (lr, lr, 10 * lr if c_lr is None else c_lr), strict=True):
        group["lr"] = rate
    return [group for group in groups if group["params"]]


def follow_tau(model: nn.Module, step: int, total_steps: int) -> bool:
    """Let the knee of every trained adapter with tau = "auto" move to kappa RMS(B A), where this step asks for it.

    phi is the identity before `tau_warmup_steps`; then tau follows until `tau_follow` of all steps are done (at least
    once), and stays. Call it before the forward pass of every optimizer step; `TauCallback` does. The knee moves inside
    that forward pass, where A and B are whole also under FSDP and ZeRO-3. It depends on the step and the weights alone,
    so a resumed run does what an uninterrupted one does.

    Args:
        model: a PeftModel with LR-LoRA.
        step: optimizer steps done so far.
        total_steps: optimizer steps of the whole training.

    Returns:
        Whether any knee moves in the next forward pass.
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
        # at the beginning, a fresh adapter that took over the knee of another starts as plain LoRA again
        delta.follow_knee(config.kappa if moves_now else math.inf if step == 0 else None)
        is_moving = is_moving or moves_now
    return is_moving


def _config_of(model: nn.Module, adapter_name: str):
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        if isinstance(configs, dict) and adapter_name in configs:
            return configs[adapter_name]
    return None
