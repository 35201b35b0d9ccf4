"""The methods that a study compares, all through PEFT's own configs; and a model under one of them."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
import warnings
from dataclasses import dataclass
from typing import Any

import peft
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.errors import InputError
from lrlora.training.model import put_on
from lrlora.tuner import LRLoraConfig
from peft_study.spec import Arm, Study, Task
from peft_study.yaml_fields import check_type, did_you_mean, takes_a_list


@dataclass(frozen=True)
class Method:
    """A method: its config in PEFT, and what of it is not PEFT's default here.

    Args:
        config: class of the config; None: no adapter, all weights are trained.
        defaults: fields that differ from the class's defaults.
        fixed: fields that make the method what it is; an arm cannot change them.
        rank, alpha: names of the fields whose quotient is s; no alpha where the method has none, or where its config
            sets it by the rank.
        scale: s of an arm that names no alpha.
    """

    config: type[Any] | None
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    rank: str = "r"
    alpha: str | None = None
    scale: int = 2


METHODS: dict[str, Method] = {
    "full": Method(None),
    "lora": Method(peft.LoraConfig, {"r": 8}, alpha="lora_alpha"),
    "rslora": Method(peft.LoraConfig, {"r": 8}, {"use_rslora": True}, alpha="lora_alpha"),
    "dora": Method(peft.LoraConfig, {"r": 8}, {"use_dora": True}, alpha="lora_alpha"),
    "adalora": Method(peft.AdaLoraConfig, {"target_r": 8, "init_r": 12}, rank="init_r", alpha="lora_alpha"),
    # PEFT's own scale of RandLoRA
    "randlora": Method(peft.RandLoraConfig, {"r": 32}, alpha="randlora_alpha", scale=20),
    "hira": Method(peft.HiraConfig),
    "vera": Method(peft.VeraConfig),
    "loha": Method(peft.LoHaConfig, {"r": 8}, alpha="alpha"),
    "fourierft": Method(peft.FourierFTConfig),
    "peanut": Method(peft.PeanutConfig),
    "sine": Method(LRLoraConfig, {"r": 8}, {"phi": "sine"}),
    "lrlora": Method(LRLoraConfig, {"r": 8}),
}
"""Defaults are PEFT's own, but for rank 8 and alpha = 2 r in the family of LoRA, and alpha = 20 r in RandLoRA."""

_SAME_FOR_ALL = (
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "target_parameters", "trainable_token_indices", "bias",
)  # fmt: skip
_NOT_FOR_USERS = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "total_step", "config_version",
)  # fmt: skip
_UNUSED = {"adalora": ("r",)}
"""Fields that a config has and its method does not read."""
_AT_LEAST_ONE = ("r", "init_r", "target_r", "n_frequency", "deltaT")


def fields_of(arm: Arm) -> dict[str, Any]:
    """The fields of an arm's config: the method's, then the arm's own, and alpha = s r where the arm names none."""
    method = METHODS[arm.method]
    fields = {**method.defaults, **method.fixed, **arm.fields}
    if method.alpha is not None:
        fields.setdefault(method.alpha, method.scale * fields[method.rank])
    return fields


def kinds_of(method: str) -> dict[str, Any]:
    """The fields that an arm of a method can set, and their types.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"no method {method!r}{did_you_mean(method, METHODS)}; there are: {', '.join(METHODS)}")
    config = METHODS[method].config
    if config is None:
        return {}
    hints = typing.get_type_hints(config)
    closed = _SAME_FOR_ALL + _NOT_FOR_USERS + _UNUSED.get(method, ())
    return {name: hints[name] for name in inspect.signature(config).parameters if name not in closed}


def is_grid(method: Any, name: str) -> bool:
    """Whether a list in this field of an arm stands for several arms: the field takes one value that is no list."""
    if name == "c_lr_factor":
        return True
    kinds = kinds_of(method) if method in METHODS else {}
    return name in kinds and not takes_a_list(kinds[name])


def check_field(method: str, name: str, value: Any) -> None:
    """Refuse a field that an arm cannot set, or a value that is not of its type.

    Raises:
        InputError: an unknown method or field, a field that is not the arm's own, a value of another type.
    """
    kinds = kinds_of(method)
    if name in _SAME_FOR_ALL:
        raise InputError(f"{name} is the same for every arm; it stands in the study, not in an arm")
    if name in _UNUSED.get(method, ()):
        raise InputError(f"{name} has no effect in method {method}; its ranks are init_r and target_r")
    if name not in kinds:
        there_are = ", ".join(kinds) or "none (all weights are trained)"
        near = did_you_mean(name, kinds)
        raise InputError(f"unknown field {name!r}{near}; fields of method {method}: {there_are}")
    check_type(kinds[name], value, name)
    if name in _AT_LEAST_ONE and value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")
    if name.endswith("dropout") and not 0 <= value < 1:
        raise InputError(f"{name} must be in [0, 1), got {value}")
    if name.endswith("_pattern"):
        for module, each in (value or {}).items():
            check_type(float if name == "alpha_pattern" else int, each, f"{name}[{module!r}]")
    fixed = METHODS[method].fixed
    if value != fixed.get(name, value):
        raise InputError(f"{name} is {fixed[name]!r} in method {method}, got {value!r}; choose another method instead")


def check_arm(study: Study, arm: Arm) -> None:
    """Refuse an arm that cannot be built.

    Raises:
        InputError: as `check_field`; or fields that do not go together.
    """
    kinds_of(arm.method)
    if arm.c_lr_factor is not None and arm.method != "lrlora":
        raise InputError(f"c_lr_factor is for method lrlora, got method {arm.method}")
    for name, value in arm.fields.items():
        check_field(arm.method, name, value)
    adapter_config(study, arm, "SEQ_CLS", total_steps=1000)


def adapter_config(study: Study, arm: Arm, task_type: str | None, total_steps: int) -> Any:
    """The PEFT config of an arm; None for full fine-tuning.

    Args:
        study: gives the placement.
        arm: gives the method and its fields.
        task_type: PEFT's word for the kind of task; None: PEFT shall not know, and leaves the head alone.
        total_steps: optimizer steps of a cell, which AdaLoRA plans with.

    Raises:
        InputError: a value that the config refuses.
    """
    method = METHODS[arm.method]
    if method.config is None:
        return None
    fields = fields_of(arm)
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
