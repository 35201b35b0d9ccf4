"""The methods that a study compares, all through PEFT's own configs; and a model under one of them."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from dataclasses import dataclass
from typing import Any

import peft
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.errors import InputError
from lrlora.study.spec import Arm, Study, Task
from lrlora.training.model import put_on
from lrlora.tuner import LRLoraConfig


@dataclass(frozen=True)
class Method:
    """A method: its config in PEFT, and what of it is not PEFT's default here.

    Args:
        config: class of the config; None: no adapter, all weights are trained.
        defaults: fields that differ from the class's defaults.
    """

    config: type[Any] | None
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


_LORA = {"r": 8, "lora_alpha": 16}

METHODS: dict[str, Method] = {
    "full": Method(None),
    "lora": Method(peft.LoraConfig, _LORA),
    "rslora": Method(peft.LoraConfig, {**_LORA, "use_rslora": True}),
    "dora": Method(peft.LoraConfig, {**_LORA, "use_dora": True}),
    "adalora": Method(peft.AdaLoraConfig, {"target_r": 8, "init_r": 12, "lora_alpha": 16}),
    "randlora": Method(peft.RandLoraConfig),
    "hira": Method(peft.HiraConfig),
    "vera": Method(peft.VeraConfig),
    "loha": Method(peft.LoHaConfig, {"r": 8, "alpha": 16}),
    "fourierft": Method(peft.FourierFTConfig),
    "peanut": Method(peft.PeanutConfig),
    "sine": Method(LRLoraConfig, {"r": 8, "phi": "sine"}),
    "lrlora": Method(LRLoraConfig, {"r": 8}),
}
"""Defaults are PEFT's own, but for rank 8 and alpha 16 in the family of LoRA."""

_SAME_FOR_ALL = (
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "target_parameters", "trainable_token_indices", "bias",
)  # fmt: skip
_NOT_FOR_USERS = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "total_step", "config_version",
)  # fmt: skip


def check_arm(study: Study, arm: Arm) -> None:
    """Refuse an arm that cannot be built.

    Raises:
        InputError: an unknown method, a field that its config has not or that is not the arm's own, a value out of
            range.
    """
    if arm.method not in METHODS:
        raise InputError(f"no method {arm.method!r}; there are: {', '.join(METHODS)}")
    method = METHODS[arm.method]
    if arm.c_lr_factor is not None and arm.method != "lrlora":
        raise InputError(f"c_lr_factor is for method lrlora, got method {arm.method}")
    have = [] if method.config is None else list(inspect.signature(method.config).parameters)
    open_fields = [name for name in have if name not in _SAME_FOR_ALL + _NOT_FOR_USERS]
    for name in arm.fields:
        if name in _SAME_FOR_ALL:
            raise InputError(f"{name} is the same for every arm; it stands in the study, not in an arm")
        if name not in open_fields:
            there_are = ", ".join(open_fields) or "none (all weights are trained)"
            raise InputError(f"unknown field {name!r}; fields of method {arm.method}: {there_are}")
    adapter_config(study, arm, "SEQ_CLS", total_steps=1000)


def adapter_config(study: Study, arm: Arm, task_type: str, total_steps: int) -> Any:
    """The PEFT config of an arm; None for full fine-tuning.

    Args:
        study: gives the placement.
        arm: gives the method and its fields.
        task_type: PEFT's word for the kind of task.
        total_steps: optimizer steps of a cell, which AdaLoRA plans with.

    Raises:
        InputError: a value that the config refuses.
    """
    method = METHODS[arm.method]
    if method.config is None:
        return None
    fields: dict[str, Any] = {**method.defaults, **arm.fields}
    if arm.method == "adalora":
        fields = {**_schedule(total_steps), **fields, "total_step": total_steps}
    placement: dict[str, Any] = {
        "task_type": task_type,
        "target_modules": _as_list(study.target_modules),
        "modules_to_save": _as_list(study.modules_to_save),
    }
    if study.exclude_modules is not None:
        placement["exclude_modules"] = _as_list(study.exclude_modules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return method.config(**placement, **fields)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{method.config.__name__} refuses its fields: {str(error).splitlines()[0]}") from error


def _schedule(total_steps: int) -> dict[str, int]:
    """AdaLoRA: a tenth of the steps at the first rank, and half of them at the last one."""
    # PEFT's allocator needs one step of scores before the last budget stands
    tfinal = min(total_steps // 2, max(0, total_steps - 2))
    return {"tinit": total_steps // 10, "tfinal": tfinal, "deltaT": max(1, total_steps // 100)}


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def steps_of(task: Task, train_rows: int) -> int:
    """Optimizer steps of a cell, as transformers.Trainer counts them on one device."""
    if task.max_steps > 0:
        return task.max_steps
    batches = math.ceil(train_rows / task.batch_size)
    return math.ceil(task.epochs * math.ceil(batches / task.gradient_accumulation))


def adapted(base: Any, config: Any) -> Any:
    """A base model under an arm.

    Raises:
        InputError: modules that the method cannot adapt.
    """
    if config is None:
        return base.requires_grad_(True)
    with warnings.catch_warnings():
        # AdaLoRA on its unused r, RandLoRA and VeRA on their seeds
        warnings.simplefilter("ignore", UserWarning)
        return put_on(base, config)


class AllocateRanks(TrainerCallback):
    """AdaLoRA's call after every optimizer step, before the gradients are gone; nothing for other methods."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the ranks."""
        tuner = getattr(kwargs["model"], "base_model", None)
        if isinstance(tuner, peft.AdaLoraModel):
            # the Trainer counts the step after this call
            tuner.update_and_allocate(state.global_step + 1)
