"""The base model of a run with a fresh adapter on it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model

from lrlora.data import TaskData
from lrlora.data.embedded import encoder_folder
from lrlora.errors import InputError, first_lines
from lrlora.saved.load import load_base
from lrlora.saved.pooling import said_of_pooling, set_pooling
from lrlora.saved.precision import keep_in_float32
from lrlora.saved.tokens import load_tokenizer, settle_padding
from lrlora.training import processes
from lrlora.training.config import TrainConfig
from lrlora.training.placement import check_names, said_of_expressions, trained_whole


def build(config: TrainConfig, task: TaskData) -> tuple[PeftModel, Any]:
    """The base model with a fresh adapter, and its tokenizer.

    Raises:
        InputError: a model that is not there, or target modules that it does not have.
    """
    base, tokenizer, task_type = base_of(config, task)
    if task.kind != "causal" and config.pooling == "auto":
        if line := said_of_pooling(base, config.model or str(encoder_folder())):
            processes.tell(line)
    return adapt(base, config, task_type), tokenizer


def base_of(config: TrainConfig, task: TaskData) -> tuple[Any, Any, str]:
    """The base model with a head for the task, its tokenizer, and PEFT's word for the kind of task.

    Raises:
        InputError: a model that is not there, or that cannot be read with the pooling of the config.
    """
    if task.kind == "causal" and config.pooling != "auto":
        raise InputError(
            f"--pooling is of classification and regression, {task.name} is a causal task; leave --pooling out"
        )
    name, options = config.model or str(encoder_folder()), config.base_options
    task_type = "CAUSAL_LM" if task.kind == "causal" else "SEQ_CLS"
    head: dict[str, Any] = {}
    if task.kind != "causal":
        head["num_labels"] = 1 if task.kind == "regression" else len(task.labels)
        head["problem_type"] = "regression" if task.kind == "regression" else "single_label_classification"
        if task.labels:
            head["id2label"] = dict(enumerate(task.labels))
            head["label2id"] = {label: number for number, label in enumerate(task.labels)}
    base = load_base(name, task_type, None, options, **head)
    set_pooling(base, config.pooling)
    tokenizer = load_tokenizer(name, options)
    settle_padding(base, tokenizer)
    return base, tokenizer, task_type


def adapt(base: Any, config: TrainConfig, task_type: str) -> PeftModel:
    """A fresh adapter on a base model; its errors name what could have been targeted."""
    adapter_config = config.adapter_config(task_type)
    if whole := trained_whole(base, adapter_config):
        more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        processes.tell(f"trained and saved whole, new in this base or a head: {', '.join(whole[:3])}{more}")
    for line in said_of_expressions(base, adapter_config):
        processes.tell(line)
    return put_on(base, adapter_config)


def put_on(base: Any, adapter_config: Any) -> PeftModel:
    """A fresh adapter of any of PEFT's methods on a base model from `load_base`.

    Modules that the base's files do not hold are trained and saved whole, see `trained_whole`: they are random at every
    load.

    Raises:
        InputError: names of modules that match nothing, with those that there are; new weights that cannot be saved;
            biases of a base that is not float32.
    """
    if whole := trained_whole(base, adapter_config):
        adapter_config.modules_to_save = [*(adapter_config.modules_to_save or ()), *whole]
    check_names(base, adapter_config)
    try:
        model = get_peft_model(base, adapter_config)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"{type(adapter_config).__name__}: {first_lines(error)}") from error
    keep_in_float32(model)
    return model


def is_bf16(choice: Literal["auto", "fp32", "bf16"]) -> bool:
    """Whether a precision means bfloat16: it is asked for, or "auto" finds a GPU that has it."""
    if choice == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return choice == "bf16"
