"""The base model of a run with a fresh adapter on it."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model

from lrlora.data import TaskData
from lrlora.data.embedded import encoder_folder
from lrlora.data.tasks import IMAGES, LANGUAGE
from lrlora.errors import InputError, first_lines
from lrlora.saved.adapter import AUTO_CLASSES
from lrlora.saved.base import IMAGE_CLS
from lrlora.saved.load import bare_base, load_base
from lrlora.saved.local import check_local
from lrlora.saved.pooling import said_of_pooling, set_pooling
from lrlora.saved.precision import keep_in_float32
from lrlora.saved.processor import forward_arguments, load_processor
from lrlora.saved.tokens import load_tokenizer, settle_padding
from lrlora.training import processes
from lrlora.training.config import TrainConfig
from lrlora.training.memory import estimate, machine, said_of_memory
from lrlora.training.placement import check_names, leave_unused_out, said_of_expressions, trained_whole


def build(config: TrainConfig, task: TaskData) -> tuple[PeftModel, Any]:
    """The base model with a fresh adapter, and its tokenizer or image processor.

    Raises:
        InputError: a model that is not there, or target modules that it does not have.
    """
    said, why_not = _memory(config, task)
    for line in said:
        processes.tell(line)
    base, tokenizer, task_type = base_of(config, task)
    if task.kind not in LANGUAGE and config.pooling == "auto":
        if line := said_of_pooling(base, config.model or str(encoder_folder())):
            processes.tell(line)
    model = adapt(base, config, task_type)
    if why_not:
        processes.tell(f"memory: not estimated, {why_not}")
    return model, tokenizer


def base_of(config: TrainConfig, task: TaskData) -> tuple[Any, Any, str]:
    """The base model with a head for the task, its tokenizer or image processor, and the word for the kind of task.

    Raises:
        InputError: a model that is not there, or that cannot be read with the pooling of the config.
    """
    if task.kind in LANGUAGE and config.pooling != "auto":
        raise InputError(
            f"--pooling is of classification and regression, {task.name} is of {task.kind}; leave --pooling out"
        )
    name, options = config.model or str(encoder_folder()), config.base_options
    task_type, head = _task_type(task), _head_of(task)
    base = load_base(name, task_type, None, options, **head)
    if task.kind == IMAGES:
        _check_image_model(base)
        processor = _reader_of(config, task)
        forward_arguments(base, processor)
        return base, processor, task_type
    set_pooling(base, config.pooling)
    tokenizer = _reader_of(config, task)
    settle_padding(base, tokenizer)
    return base, tokenizer, task_type


def _reader_of(config: TrainConfig, task: TaskData) -> Any:
    """The tokenizer of a run, or its image processor."""
    name, options = config.model or str(encoder_folder()), config.base_options
    if task.kind == IMAGES:
        return load_processor(name, options, config.image_size or task.image_size)
    return load_tokenizer(name, options)


def _check_image_model(base: Any) -> None:
    """Refuse an image classifier that an adapter cannot be trained on."""
    name = type(base).__name__
    if "labels" not in inspect.signature(base.forward).parameters:
        raise InputError(f"{name} takes no labels, so it cannot be trained; pass another model")
    # their running means change while training and are not part of an adapter
    norms = [key for key, module in base.named_modules() if "BatchNorm" in type(module).__name__]
    if norms:
        raise InputError(
            f"{name} has batch normalisation ({norms[0]}): its statistics change in training, and an adapter does not "
            "hold them; pass a model without it, such as a vision transformer, Swin or ConvNeXt"
        )


def _task_type(task: TaskData) -> str:
    if task.kind == IMAGES:
        return IMAGE_CLS
    return "CAUSAL_LM" if task.kind in LANGUAGE else "SEQ_CLS"


def _head_of(task: TaskData) -> dict[str, Any]:
    """What of the base's config a task decides."""
    if task.kind in LANGUAGE:
        return {}
    head: dict[str, Any] = {
        "num_labels": 1 if task.kind == "regression" else len(task.labels),
        "problem_type": "regression" if task.kind == "regression" else "single_label_classification",
    }
    if task.labels:
        head["id2label"] = dict(enumerate(task.labels))
        head["label2id"] = {label: number for number, label in enumerate(task.labels)}
    return head


def _memory(config: TrainConfig, task: TaskData) -> tuple[list[str], str | None]:
    """What is said of the memory of a run before its weights are loaded; or why it cannot be estimated."""
    name, options, task_type = config.model or str(encoder_folder()), config.base_options, _task_type(task)
    check_local(name)
    try:
        base = bare_base(name, AUTO_CLASSES[task_type], options, _head_of(task))
        tokenizer = _reader_of(config, task)
        found = estimate(base, config, task, tokenizer, task_type, is_bf16(config.precision))
    except InputError:
        # the run refuses the same below, in its own words
        return [], None
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        return [], first_lines(error)
    return said_of_memory(found, options, machine(options)), None


def adapt(base: Any, config: TrainConfig, task_type: str) -> PeftModel:
    """A fresh adapter on a base model; its errors name what could have been targeted."""
    adapter_config = config.adapter_config(task_type)
    if whole := trained_whole(base, adapter_config):
        more = f" and {len(whole) - 3} more" if len(whole) > 3 else ""
        processes.tell(f"trained and saved whole, new in this base or a head: {', '.join(whole[:3])}{more}")
    if unused := leave_unused_out(base, adapter_config):
        processes.tell(f"not adapted, {type(base).__name__} does not read it: {unused}")
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
    leave_unused_out(base, adapter_config)
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
