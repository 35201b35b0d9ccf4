"""The trainer as `lrlora train` sets it up: transformers' own for classes and numbers, trl's for language."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer

from lrlora.data import TaskData
from lrlora.data.encode import first_label
from lrlora.data.tasks import IMAGES, LANGUAGE, Kind
from lrlora.errors import InputError, first_lines
from lrlora.evaluation.labelled import base_in
from lrlora.evaluation.score import Outputs, collator_of, score
from lrlora.internals import labelled_logits_on_cpus, trackers
from lrlora.training.arguments import arguments_class, check_passed
from lrlora.training.config import OURS, TrainConfig
from lrlora.training.epochs import DrawAnew, RowsOfLikeLength, is_by_length, lengths_of
from lrlora.training.guard import NonFiniteGuard
from lrlora.training.model import is_bf16
from lrlora.training.sharding import settle
from lrlora.tuner.callback import TauCallback
from lrlora.tuner.internals import BaseTunerLayer
from lrlora.tuner.optimize import param_groups
from lrlora.tuner.sharded import is_sharded, whole_state

_ENCODED = ["input_ids", "labels"]


class _OfRun:
    """A Trainer whose evaluations are those of `lrlora evaluate`, and whose checkpoints hold the adapter alone."""

    scored: Callable[[Any], dict[str, float]]
    outputs: Outputs
    order: RowsOfLikeLength | None = None
    _measured: tuple[int, dict[str, float]] | None = None

    def save_model(self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter; of a model in shards it alone is gathered, without the base."""
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)  # pyright: ignore[reportAttributeAccessIssue]
            return
        state = whole_state(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def evaluate(
        self: Any, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the model on the evaluation rows of the task, log it, and tell the callbacks."""
        found = {f"{metric_key_prefix}_{name}": value for name, value in self.scored(self.model).items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        self._measured = self.state.global_step, found
        return found

    def evaluate_trained(self: Any) -> dict[str, float]:
        """The numbers of the model after training: those of the last evaluation, where no step followed it."""
        if self._measured is None or self._measured[0] != self.state.global_step or self.args.load_best_model_at_end:
            return self.evaluate()
        return self._measured[1]

    def _get_train_sampler(self: Any, train_dataset: Any = None) -> Any:
        return self.order or super()._get_train_sampler(train_dataset)  # pyright: ignore[reportAttributeAccessIssue]

    def create_model_card(self, *given: Any, **named: Any) -> None:
        """Leave out the card that trl writes next to the checkpoints: a run's card is that of its adapter."""


class _LabelledLogits(_OfRun):
    """A Trainer of trl that computes logits where a token is learned, and nowhere else."""

    def compute_loss(self, *given: Any, **named: Any) -> Any:
        with labelled_logits_on_cpus():
            return super().compute_loss(*given, **named)  # pyright: ignore[reportAttributeAccessIssue]


class _PlainTrainer(_OfRun, Trainer):
    pass


def make_trainer(
    config: TrainConfig,
    task: TaskData,
    model: Any,
    tokenizer: Any,
    train_rows: Any,
    out: Path,
    evaluation_rows: Any = None,
    length: int | None = None,
    saves: bool = True,
) -> Trainer:
    """The trainer as `lrlora train` sets it up; also for models of other methods, and without an adapter.

    transformers' own for classification and regression, trl's SFTTrainer for language modelling and
    its DPOTrainer for preference pairs; with an adapter on the layer that makes the logits, which SFTTrainer cannot
    train, transformers' own. Its `evaluate` is `score` on the evaluation rows.

    Args:
        config: the settings; those of the adapter are not read.
        task: what is trained.
        model: the model, adapted or not.
        tokenizer: of the model.
        train_rows: encoded rows.
        out: folder of the checkpoints.
        evaluation_rows: encoded rows; None where nothing is evaluated while training.
        length: tokens of a row at most, which rows are packed to.
        saves: write checkpoints.

    Raises:
        InputError: a setting that transformers or trl refuses, or that the kind of task does not have.
    """
    by_trl = task.kind in LANGUAGE and not (task.kind == "causal" and _is_head_adapted(model))
    arguments = _arguments(config, task, out, length, saves, task.kind if by_trl else "classification")
    groups = param_groups(model, config.learning_rate, config.c_learning_rate, config.weight_decay)
    given: dict[str, Any] = {
        "model": model,
        "args": arguments,
        "train_dataset": train_rows,
        "eval_dataset": evaluation_rows if config.eval_steps is not None else None,
        "processing_class": tokenizer,
        "optimizer_cls_and_kwargs": _optimizer(arguments, groups, config),
        "callbacks": [TauCallback(), NonFiniteGuard()],
    }
    try:
        if by_trl:
            trainer = _by_trl(task.kind, given)
        else:
            trainer = _PlainTrainer(**given, data_collator=collator_of(task, tokenizer, model))
            if task.kind == IMAGES:
                trainer.add_callback(DrawAnew(train_rows))
        if task.kind not in LANGUAGE:
            # the Trainer takes every model whose forward has **kwargs for one that divides its loss by the rows of all
            # accumulated batches and processes. Classifiers take the mean of a batch: their loss would grow with both
            trainer.model_accepts_loss_kwargs = False
    except ValueError as error:
        raise InputError(first_lines(error)) from error
    if is_by_length(vars(arguments)):
        lengths = lengths_of(trainer.train_dataset)
        rows_of_a_step = arguments.train_batch_size * arguments.gradient_accumulation_steps
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        trainer.order = RowsOfLikeLength(lengths, rows_of_a_step, seed)
        trainer.add_callback(DrawAnew(trainer.order))
    if config.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(config.early_stopping_patience))
    settle(trainer)
    bf16 = is_bf16(config.precision)
    trainer.outputs = {}
    trainer.scored = lambda trained: score(
        trained, tokenizer, task, evaluation_rows, config.batch_size, bf16, trainer.outputs
    )
    return trainer


@functools.cache
def _trainers() -> dict[str, type]:
    """trl's trainers by kind of task, on rows that are encoded already."""
    import trl

    class LanguageTrainer(_LabelledLogits, trl.SFTTrainer):
        pass

    class PreferenceTrainer(_LabelledLogits, trl.DPOTrainer):
        """The reference is the base: a fresh adapter changes nothing, and needs no frozen copy of itself."""

        def __init__(self, model: Any, optimizer_cls_and_kwargs: Any, **named: Any) -> None:
            super().__init__(model=model, **named)
            self.optimizer_cls_and_kwargs = optimizer_cls_and_kwargs
            if "ref" in model.peft_config:
                model.delete_adapter("ref")

        def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: Any) -> Any:
            return dataset

    return {"causal": LanguageTrainer, "preference": PreferenceTrainer}


def _by_trl(kind: Kind, given: dict[str, Any]) -> Any:
    precisions = {each: each.dtype for each in given["model"].parameters() if each.requires_grad}
    rows = _pairs(given["train_dataset"]) if kind == "preference" else given["train_dataset"].select_columns(_ENCODED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        trainer = _trainers()[kind](**{**given, "train_dataset": rows})
    for parameter, precision in precisions.items():
        # of a quantised base trl makes the adapter bfloat16, in which small steps of A, B and c vanish
        parameter.data = parameter.data.to(precision)
    return trainer


def _pairs(encoded: Any) -> Any:
    """Rows of trl's DPOTrainer from those of `encode`, in which a chosen answer is before the rejected one."""
    from datasets import Dataset

    made: dict[str, list[Any]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for number, (ids, labels) in enumerate(zip(encoded["input_ids"], encoded["labels"], strict=True)):
        begin = first_label(labels)
        made["rejected_ids" if number % 2 else "chosen_ids"].append(ids[begin:])
        if number % 2 == 0:
            made["prompt_ids"].append(ids[:begin])
    return Dataset.from_dict(made)


def _is_head_adapted(model: Any) -> bool:
    """Whether an adapter is on the layer that makes the logits, which trl multiplies by itself."""
    return isinstance(base_in(model).get_output_embeddings(), BaseTunerLayer)


def _arguments(config: TrainConfig, task: TaskData, out: Path, length: int | None, saves: bool, kind: Kind) -> Any:
    cls = arguments_class(kind)
    check_passed(config.trainer, OURS, cls)
    chosen: dict[str, Any] = {
        "optim": "adamw_torch",
        "save_total_limit": 2,
        "logging_steps": 20,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": not saves,
        **config.trainer,
    }
    if config.eval_steps is not None:
        chosen |= {"eval_strategy": "steps", "eval_steps": config.eval_steps}
        chosen.setdefault("metric_for_best_model", task.main_metric)
        chosen.setdefault("greater_is_better", not chosen["metric_for_best_model"].endswith("loss"))
    if config.early_stopping_patience is not None:
        # the count of evaluations without a gain is of the run, not of the process
        chosen |= {"load_best_model_at_end": True, "restore_callback_states_from_checkpoint": True}
    if kind in LANGUAGE:
        # rows are cut when they are encoded; only packing needs to know the length
        chosen["max_length"] = length if chosen.get("packing") else None
    try:
        return cls(
            output_dir=str(out),
            num_train_epochs=config.epochs,
            max_steps=config.max_steps,
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            gradient_checkpointing=config.gradient_checkpointing,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            lr_scheduler_type=config.lr_scheduler,
            warmup_steps=config.warmup_steps,
            max_grad_norm=config.max_grad_norm,
            bf16=is_bf16(config.precision),
            # else several processes on CPUs would each train a separate model
            use_cpu=not torch.accelerator.is_available(),
            seed=config.seed,
            save_strategy="steps" if saves else "no",
            save_steps=config.save_steps,
            logging_nan_inf_filter=False,
            report_to=config.report_to,
            remove_unused_columns=True,
            label_names=["labels"],
            **chosen,
        )
    except (ValueError, TypeError) as error:
        raise InputError(first_lines(error)) from error


def _optimizer(arguments: Any, groups: list[dict[str, Any]], config: TrainConfig) -> tuple[Any, dict[str, Any]]:
    """The optimizer of `optim`, with the groups in its arguments: the way that the Trainer offers for its own methods.

    Raises:
        InputError: an optimizer that is not installed.
    """
    try:
        made, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except (ImportError, ValueError) as error:
        raise InputError(f"--optim {config.trainer['optim']}: {first_lines(error)}") from error
    return made, {**options, "params": groups, "lr": config.learning_rate}


def check_trackers(names: list[str]) -> None:
    """Refuse a tracker that transformers does not know, or that is not installed.

    Raises:
        InputError: with what transformers says of it.
    """
    if names in ([], ["none"]):
        return
    try:
        for callback in trackers("all" if names == ["all"] else names):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"report_to {' '.join(names)}: {' '.join(str(error).split())}") from error
