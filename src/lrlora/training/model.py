"""The base model of a run with a fresh adapter on it, and an adapter that was saved with its base under it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoTokenizer

from lrlora.data import TaskData
from lrlora.data.embedded import encoder_folder, model_folder
from lrlora.errors import InputError
from lrlora.training.config import TrainConfig
from lrlora.training.saved import AUTO_CLASSES, read_adapter


def build(config: TrainConfig, task: TaskData) -> tuple[PeftModel, Any]:
    """The base model with a fresh adapter, and its tokenizer.

    Raises:
        InputError: a model that is not there, or target modules that it does not have.
    """
    base, tokenizer, task_type = base_of(config, task)
    return adapt(base, config, task_type), tokenizer


def base_of(config: TrainConfig, task: TaskData) -> tuple[Any, Any, str]:
    """The base model with a head for the task, its tokenizer, and PEFT's word for the kind of task.

    Raises:
        InputError: a model that is not there.
    """
    name = config.model or str(encoder_folder())
    task_type = "CAUSAL_LM" if task.kind == "causal" else "SEQ_CLS"
    head: dict[str, Any] = {}
    if task.kind != "causal":
        head["num_labels"] = 1 if task.kind == "regression" else len(task.labels)
        head["problem_type"] = "regression" if task.kind == "regression" else "single_label_classification"
        if task.labels:
            head["id2label"] = dict(enumerate(task.labels))
            head["label2id"] = {label: number for number, label in enumerate(task.labels)}
    base = load_base(name, task_type, **head)
    tokenizer = load_tokenizer(name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if base.config.pad_token_id is None:
        base.config.pad_token_id = tokenizer.pad_token_id
    return base, tokenizer, task_type


def adapt(base: Any, config: TrainConfig, task_type: str) -> PeftModel:
    """A fresh adapter on a base model; its errors name what could have been targeted."""
    return put_on(base, config.adapter_config(task_type))


def put_on(base: Any, adapter_config: Any) -> PeftModel:
    """A fresh adapter of any of PEFT's methods on a base model.

    Raises:
        InputError: target modules that the model does not have, with those that it has.
    """
    try:
        return get_peft_model(base, adapter_config)
    except InputError:
        raise
    except ValueError as error:
        if "target" not in str(error).lower():
            raise InputError(f"{type(adapter_config).__name__}: {_first_line(error)}") from error
        # PEFT's own word for target modules that match nothing
        targets = adapter_config.target_modules
        targets = sorted(targets) if isinstance(targets, set) else targets
        kinds = sorted({n.split(".")[-1] for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)})
        raise InputError(
            f"no module of {base.config.name_or_path or type(base).__name__} matches target_modules "
            f"{targets}; its linear layers end in: {', '.join(kinds)}"
        ) from error


def load_base(name: str, task_type: str | None, auto_class: Any = None, **options: Any) -> Any:
    """A base model in float32 from a local folder or the hub.

    Raises:
        InputError: it is not there, or transformers has no such model for this kind of task.
    """
    name = model_folder(name)
    check_local(name)
    try:
        return (auto_class or AUTO_CLASSES[task_type]).from_pretrained(name, dtype=torch.float32, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = _first_line(error)
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights do not have the shapes that are needed; has it a head for another number of classes?"
        raise InputError(f"cannot load the model {name!r}: {reason}") from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a base model; errors as `load_base`."""
    try:
        return AutoTokenizer.from_pretrained(model_folder(name))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load the tokenizer of {name!r}: {_first_line(error)}") from error


def load_adapter(folder: str, model: str | None = None) -> PeftModel:
    """An adapter with its base model under it, in evaluation mode.

    Args:
        folder: an adapter folder, or a run folder that holds one.
        model: base model; None means the one that the adapter names.

    Raises:
        InputError: no adapter there, a file cut short, or a base of other shapes.
    """
    saved = read_adapter(folder, model)
    base = load_base(saved.base, saved.config.get("task_type"), saved.auto_class, **saved.head_options())
    try:
        return PeftModel.from_pretrained(base, str(saved.folder)).eval()
    except InputError:
        raise
    except (ValueError, RuntimeError, KeyError) as error:
        raise InputError(f"cannot put the adapter {saved.folder} on {saved.base}: {_first_line(error)}") from error


def precision_of(choice: Literal["auto", "fp32", "bf16"]) -> str:
    """ "bf16" where it is asked for, or where "auto" finds a GPU that has it; else "fp32"."""
    if choice != "auto":
        return choice
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def check_local(name: str) -> None:
    """Refuse a path that is no folder; a name of the hub passes."""
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise InputError(f"no such model folder: {name}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
