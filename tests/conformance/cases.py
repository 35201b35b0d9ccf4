"""What PEFT's own tests are run with: one list of cases, for LR-LoRA and, as the yardstick, for LoRA.

A PEFT that has LR-LoRA inside ("upstream") has these cases in its own test files, written there by `upstream.rows`.
"""

from __future__ import annotations

import os
from typing import Any

METHOD = os.environ.get("CONFORMANCE_METHOD", "lrlora")
TITLE = "LoRA" if METHOD == "lora" else "LR-LoRA"
CONFIG: type
if METHOD == "lora":
    from peft import LoraConfig as CONFIG
elif METHOD == "upstream":
    from peft import LRLoraConfig as CONFIG
else:
    from lrlora import LRLoraConfig as CONFIG

# (name, name of a mock model in test_custom_models, fields)
_CUSTOM: list[tuple[str, str, dict[str, Any]]] = [
    ("MLP string", "MLP", {"target_modules": "lin0"}),
    ("MLP one", "MLP", {"target_modules": ["lin0"]}),
    ("MLP other", "MLP", {"target_modules": ["lin1"]}),
    ("MLP both", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("MLP head", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP dropout", "MLP", {"target_modules": ["lin0"], "lora_alpha": 4, "lora_dropout": 0.1}),
    ("MLP rslora", "MLP", {"target_modules": ["lin0"], "use_rslora": True}),
    ("MLP rank pattern", "MLP", {"target_modules": ["lin0", "lin1"], "rank_pattern": {"lin0": 4}}),
    ("MLP alpha pattern", "MLP", {"target_modules": ["lin0", "lin1"], "alpha_pattern": {"lin1": 3}}),
    ("Conv1D", "EmbConv1D", {"target_modules": ["conv1d"]}),
    ("Embedding", "EmbConv1D", {"target_modules": ["emb"]}),
    ("Embedding and Conv1D", "EmbConv1D", {"target_modules": ["emb", "conv1d"]}),
    ("Conv1d", "Conv1d", {"target_modules": ["conv1d"]}),
    ("Conv2d", "Conv2d", {"target_modules": ["conv2d"]}),
    ("Conv2d and linear", "Conv2d", {"target_modules": ["conv2d", "lin0"]}),
    ("Conv2d groups", "Conv2dGroups", {"target_modules": ["conv2d"]}),
    ("Conv3d", "Conv3d", {"target_modules": ["conv3d"]}),
    ("Parameters one", "MlpUsingParameters", {"target_parameters": ["lin0.weight"]}),
    ("Parameters both", "MlpUsingParameters", {"target_parameters": ["lin0.weight", "lin1.weight"]}),
    ("Conv3d and linear", "Conv3d", {"target_modules": ["conv3d", "lin0"]}),
]  # fmt: skip


def rows(kind: str, theirs: list[Any]) -> list[Any]:
    """The cases of one of PEFT's lists, in the form that the list has there.

    Args:
        kind: which list.
        theirs: what stands in it.
    """
    random = {"init_weights": False} if METHOD == "lrlora" else {"init_lora_weights": False}
    one, other = ({"target_modules": [name], **random} for name in ("lin0", "lin1"))
    if kind == "custom":
        return [(f"{name} {TITLE}", model, CONFIG, dict(fields)) for name, model, fields in _CUSTOM]
    if kind == "several":
        return [(f"{TITLE} Same", METHOD, CONFIG, one, dict(one)), (f"{TITLE} Different", METHOD, CONFIG, one, other)]
    if kind == "mixed":
        return [(f"{TITLE} mixed adapter", CONFIG(**one), CONFIG(**one, r=16))]
    if kind == "classes":
        return [CONFIG]
    if kind == "configs":
        return [(CONFIG, {})]
    if kind == "parameters":
        return [(model, CONFIG, fields) for model, _, fields in theirs]
    if kind == "quantised":
        return [(CONFIG, {"r": 8, "target_modules": ["q_proj", "v_proj"]})]
    # the suite draws B at random, larger than training makes it: a knee of that size, or phi folds most of B A to 0
    knee = {"tau": 1.0} if METHOD == "lrlora" and kind in ("CAUSAL_LM", "SEQ_2_SEQ_LM") else {}
    return [(CONFIG, {"task_type": kind, "target_modules": None, **knee})]
