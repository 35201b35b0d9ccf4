"""The arguments of transformers' and trl's trainers that a run passes on under their own names."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Collection, Mapping
from typing import Any, get_type_hints

from lrlora.data.tasks import LANGUAGE, Kind
from lrlora.errors import InputError, meant

_INSTEAD = {
    "output_dir": "out",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "activation_checkpointing": "gradient_checkpointing",
    "lr_scheduler_type": "lr_scheduler",
    "bf16": "precision",
    "bf16_full_eval": "precision",
    "fp16": "precision",
    "fp16_full_eval": "precision",
    "eval_strategy": "eval_steps",
    "save_strategy": "save_steps",
    "truncation_mode": "max_length",
    "completion_only_loss": "template",
    "assistant_only_loss": "template",
    "chat_template_path": "template",
    "loss": "loss_type",
}
"""What has a setting of ours in its place."""

_DECIDED = {
    name: why
    for names, why in (
        (
            "do_train do_eval do_predict resume_from_checkpoint ignore_data_skip save_only_model",
            "lrlora train trains, evaluates and goes on from the last checkpoint by itself",
        ),
        (
            "prediction_loss_only eval_accumulation_steps eval_do_concat_batches eval_use_gather_object "
            "include_for_metrics batch_eval_metrics eval_packing",
            "evaluations are those of lrlora evaluate",
        ),
        (
            "label_names remove_unused_columns length_column_name dataset_text_field dataset_kwargs dataset_num_proc "
            "model_init_kwargs trust_remote_code eos_token pad_token",
            "lrlora train reads the model and the rows itself",
        ),
        (
            "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
            "save_on_each_node enable_jit_checkpoint",
            "it would send or write what lrlora train does not look after",
        ),
        ("sync_ref_model ref_model_mixup_alpha ref_model_sync_steps", "the reference of an adapter is its base"),
        ("logging_nan_inf_filter", "a loss that is NaN or inf stops the training"),
        ("optim_target_modules", "the optimizers that take it train a projection of whole weights, not an adapter"),
        ("use_cpu", "a GPU is used where there is one; CUDA_VISIBLE_DEVICES= hides it"),
        ("local_rank", "torchrun and accelerate launch set it"),
        ("debug", "it is not passed on"),
    )
    for name in names.split()
}
"""What cannot be chosen, and why."""

FREE = frozenset(
    (
        "disable_tqdm run_name project trackio_space_id trackio_bucket_id trackio_static_space_id logging_strategy "
        "logging_steps logging_first_step log_on_each_node log_level log_level_replica save_total_limit ddp_timeout "
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context skip_memory_metrics include_num_input_tokens_seen torch_empty_cache_steps"
    ).split()
)
"""Arguments that do not change what is trained: a run may be resumed with others."""


def arguments_class(kind: Kind) -> type:
    """TrainingArguments, SFTConfig or DPOConfig: what the trainer of a kind of task takes.

    Raises:
        InputError: trl is not installed, and the kind needs it.
    """
    if kind in ("classification", "regression"):
        from transformers import TrainingArguments

        return TrainingArguments
    if importlib.util.find_spec("trl") is None:
        raise InputError('language models are trained by trl, which is not installed: pip install "lrlora[train]"')
    import trl

    return trl.SFTConfig if kind == "causal" else trl.DPOConfig


@functools.cache
def passed_fields(ours: Collection[str]) -> tuple[dataclasses.Field[Any], ...]:
    """Every argument that may be passed on, with its type, as a field without a value.

    Args:
        ours: names of lrlora's own settings, which are set under the same name.
    """
    found = {}
    kinds: tuple[Kind, ...] = ("classification",)
    if importlib.util.find_spec("trl") is not None:
        kinds = (*kinds, *LANGUAGE)
    for cls in map(arguments_class, kinds):
        types = get_type_hints(cls)
        for each in dataclasses.fields(cls):
            if each.name not in {*ours, *_INSTEAD, *_DECIDED} and each.init:
                help = " ".join((each.metadata.get("help") or "see transformers and trl").split()).replace("%", "%%")
                made: Any = dataclasses.field(default=None, metadata={"help": help})
                made.name, made.type = each.name, types[each.name]
                found.setdefault(each.name, made)
    return tuple(found.values())


def check_passed(passed: Mapping[str, Any], ours: Collection[str], cls: type | None = None) -> None:
    """Refuse arguments that cannot be passed on.

    Args:
        passed: the arguments by name.
        ours: names of lrlora's own settings.
        cls: the arguments of the task's trainer, if it is known.

    Raises:
        InputError: a name that no trainer has, one that lrlora sets itself, or one of another kind of task; a value
            that is none of those that the trainer knows, and would take for its default.
    """
    known = [each.name for each in passed_fields(frozenset(ours))] if passed else []
    for name in passed:
        if name in ours or name in _INSTEAD:
            raise InputError(f"{name} is set by {_INSTEAD.get(name, name)}; leave it out of trainer")
        if name in _DECIDED:
            raise InputError(f"{name} cannot be chosen: {_DECIDED[name]}; leave it out")
        if name not in known:
            near = meant(name, known)
            raise InputError(
                f"no argument of transformers' or trl's trainers: {name}" + (f"; did you mean {near}?" if near else "")
            )
    own = {each.name: each for each in dataclasses.fields(cls or arguments_class("classification"))}
    for name, value in passed.items():
        choices = own[name].metadata.get("choices") if name in own else None
        if choices and value is not None and value not in choices:
            raise InputError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
    if cls is not None and (other := [name for name in passed if name not in own]):
        raise InputError(f"{other[0]} is no argument of {cls.__name__}, of which this task is trained; leave it out")


def why_not(name: str) -> str | None:
    """Why an argument of a trainer is no flag; None where it is one, or where no trainer has it."""
    if name in _INSTEAD:
        return f"it is --{_INSTEAD[name]} here"
    return _DECIDED.get(name)
