"""The methods that a study compares, all through PEFT's own configs; and a model under one of them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import peft
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lrlora.errors import InputError
from lrlora.training.model import put_on
from peft_study.methods import METHODS, SAME_FOR_ALL, UNUSED, is_placed_by_arm, kinds_of, method_named, parameters_of
from peft_study.spec import Arm, Study, Task
from peft_study.yaml_fields import check_type, did_you_mean, takes_a_list

_AT_LEAST_ONE = ("r", "init_r", "target_r", "n_frequency", "deltaT")


def fields_of(arm: Arm) -> dict[str, Any]:
    """The fields of an arm's config: the method's, then the arm's own, and alpha = s r where the arm names none."""
    method = method_named(arm.method)
    fields = {**method.defaults, **method.fixed, **arm.fields}
    if method.alpha is not None:
        fields.setdefault(method.alpha, method.scale * fields[method.rank])
    return fields


def is_grid(method: Any, name: str) -> bool:
    """Whether a list in this field of an arm means several arms: the field takes one value that is no list."""
    if name == "c_lr_factor":
        return True
    try:
        kinds = kinds_of(method)
    except InputError:
        return False  # said where the arm is checked
    return name in kinds and not takes_a_list(kinds[name])


def check_field(method: str, name: str, value: Any) -> None:
    """Refuse a field that an arm cannot set, or a value that is not of its type.

    Raises:
        InputError: an unknown method or field, a field that is not the arm's own, a value of another type.
    """
    kinds = kinds_of(method)
    if name in SAME_FOR_ALL and name not in kinds:
        raise InputError(f"{name} is the same for every arm; set it in the study, not in an arm")
    if name in UNUSED.get(method, ()):
        raise InputError(f"{name} has no effect in method {method}; its ranks are init_r and target_r")
    if name not in kinds:
        there_are = ", ".join(kinds) or "none (all weights are trained)"
        near = did_you_mean(name, kinds)
        raise InputError(f"unknown field {name!r}{near}; fields of method {method}: {there_are}")
    check_type(kinds[name], value, name)
    if method in METHODS and name in _AT_LEAST_ONE and value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")
    if name.endswith("dropout") and isinstance(value, float | int) and not 0 <= value < 1:
        raise InputError(f"{name} must be in [0, 1), got {value}")
    if name.endswith("_pattern") and isinstance(value, dict):
        for module, each in value.items():
            check_type(float if name == "alpha_pattern" else int, each, f"{name}[{module!r}]")
    fixed = method_named(method).fixed
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
    try:
        config = adapter_config(study, arm, "SEQ_CLS", total_steps=1000)
    except InputError:
        # CPT is of causal models; what the model is, the cell finds out
        config = adapter_config(study, arm, "CAUSAL_LM", total_steps=1000)
    if config is not None and config.is_prompt_learning and any(task.is_images for task in study.tasks):
        raise InputError(
            f"{type(config).__name__} learns prompts of tokens, and a model of images reads none; leave out the arm"
        )
    kind = getattr(config, "peft_type", None)
    if config is not None and not config.is_prompt_learning and kind not in peft.PEFT_TYPE_TO_TUNER_MAPPING:
        raise InputError(
            f"{type(config).__name__} has the peft_type {kind!r}, for which PEFT has no tuner; register the method in "
            "its module, with peft.utils.register_peft_method"
        )


def adapter_config(study: Study, arm: Arm, task_type: str | None, total_steps: int) -> Any:
    """The PEFT config of an arm; None for full fine-tuning.

    Args:
        study: gives the placement.
        arm: gives the method and its fields.
        task_type: PEFT's word for the kind of task; None: PEFT is not told, and leaves the head as it is.
        total_steps: optimizer steps of a cell, which AdaLoRA plans with.

    Raises:
        InputError: a value that the config refuses.
    """
    method = method_named(arm.method)
    if method.config is None:
        return None
    fields = fields_of(arm)
    if arm.method == "adalora":
        fields = {**_schedule(total_steps), **fields, "total_step": total_steps}
    placement = _placement(study, arm, method.config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return method.config(task_type=task_type, **placement, **fields)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"{method.config.__name__} refuses its fields: {str(error).splitlines()[0]}") from error


def _placement(study: Study, arm: Arm, config: type[Any]) -> dict[str, Any]:
    """Where the study puts an adapter, as fields of a config; what the study asks for and a config has not is refused.

    A config without target_modules (prompt learning) has no place among the modules; others have their own.
    """
    takes = parameters_of(config)
    fields = {"modules_to_save": study.modules_to_save, "exclude_modules": study.exclude_modules}
    lost = [name for name, value in fields.items() if value is not None and name not in takes]
    if lost:
        raise InputError(
            f"{config.__name__} has no {lost[0]}, which the study sets for every arm; leave it out of the study, or "
            "leave out the arm"
        )
    placed = {name: _as_list(value) for name, value in fields.items() if value is not None}
    if "target_modules" in takes and not is_placed_by_arm(arm.method):
        placed["target_modules"] = _as_list(study.target_modules)
    return placed


def _schedule(total_steps: int) -> dict[str, int]:
    """AdaLoRA: a tenth of the steps at the first rank, and half of them at the last one."""
    # PEFT's allocator needs one step of scores before the last budget is reached
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
