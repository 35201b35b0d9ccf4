"""The base model of a cell: only its first blocks, and for facts an adapter with a frozen head."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from lrlora.errors import InputError
from lrlora.training.placement import ALL_LINEAR
from peft_study.arms import adapted, adapter_config
from peft_study.spec import Arm, Study


def blocks_of(base: Any) -> str:
    """Name of the list of blocks of a model.

    Raises:
        InputError: it has none, or several: an encoder with a decoder, blocks that share their weights, or
            stages of several widths.
    """
    config = config_of_blocks(base)
    if hasattr(config, "depths"):
        raise InputError(f"{type(base).__name__} needs one list of its blocks, and has stages of several widths")
    many = config.num_hidden_layers
    lists = [n for n, m in base.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == many]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(outer) != 1:
        found = f"{len(outer)} of them: {', '.join(outer)}" if outer else "none"
        raise InputError(f"{type(base).__name__} needs one list of its {many} blocks, and has {found}")
    return outer[0]


def config_of_blocks(base: Any) -> Any:
    """The config that describes the blocks of a model: of an image classifier that of its vision tower."""
    tower = getattr(base.config, "vision_config", None)
    is_of_images = "ForImageClassification" in type(base).__name__
    return tower if is_of_images and tower is not None else base.config.get_text_config()


def keep_blocks(base: Any, count: int) -> None:
    """Drop all but the first `count` blocks of a model, in place.

    Raises:
        InputError: fewer blocks than that, or no list of them.
    """
    try:
        name = blocks_of(base)
    except InputError as error:
        raise InputError(f"{error}; leave blocks out of the study, or take another model") from error
    blocks = base.get_submodule(name)
    if count > len(blocks):
        raise InputError(f"blocks asks for the first {count} blocks of {type(base).__name__}, which has {len(blocks)}")
    gone = tuple(f"{name}.{number}." for number in range(count, len(blocks)))
    del blocks[count:]
    config = config_of_blocks(base)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:count]
    config.num_hidden_layers = count
    # only a model that was loaded from files has them
    base.new_parameters = [each for each in getattr(base, "new_parameters", []) if not each.startswith(gone)]


def with_frozen_head(study: Study, arm: Arm, base: Any, task_type: str, steps: int) -> tuple[Any, Any]:
    """A base model under an arm, for facts; and the arm's config, None for full fine-tuning.

    Only the adapter is trained: new weights, such as the head of an encoder, stay as they were drawn, and of
    "all-linear" the linear layers of the blocks are adapted. Full fine-tuning trains all but the head. The base's
    own dropout is off, since it would count against what can be held; the dropout of an arm is the arm's.

    Raises:
        InputError: modules that the method cannot adapt, or a model without a list of blocks.
    """
    backbone = base.base_model_prefix
    linear = [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    heads = [name for name in linear if not name.startswith(f"{backbone}.")]
    targets = study.target_modules
    if targets in (ALL_LINEAR, (ALL_LINEAR,)):
        inside = f"{blocks_of(base)}."
        # by name: not every method of PEFT knows what to exclude
        targets = tuple(name for name in linear if name.startswith(inside))
    elif hit := [name for name in heads if _is_target(name, targets)]:
        raise InputError(f"target_modules names the head {hit[0]}, and for facts the head stays as it is; leave it out")
    _without_dropout(base)
    # PEFT trains the head of what it knows as a classifier, and put_on every weight that the files lack
    base.new_parameters = []
    placed = dataclasses.replace(study, target_modules=targets)
    config = adapter_config(placed, arm, "CAUSAL_LM" if task_type == "CAUSAL_LM" else None, steps)
    if config is not None and config.is_prompt_learning and config.task_type is None:
        raise InputError(
            f"{type(config).__name__} learns prompts, for which PEFT must know the task of the model, and would then "
            "train the head of an encoder, which stays as it is for facts; take a causal model, or leave out the arm"
        )
    model = adapted(base, config)
    if config is None:
        for name in heads if task_type == "SEQ_CLS" else ():
            base.get_submodule(name).requires_grad_(False)
    return model, config


def _is_target(name: str, targets: str | tuple[str, ...]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _without_dropout(base: Any) -> None:
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # where it is given to a function, as attention's is
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
