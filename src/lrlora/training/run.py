"""train(config): from settings to a run folder with the adapter, its metrics and its learned ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import lrlora
from lrlora.data import TaskData, load_task
from lrlora.data.encode import encode
from lrlora.data.length import length_of_rows
from lrlora.errors import InputError
from lrlora.files import write_json
from lrlora.training import folder as run_folder
from lrlora.training.config import TrainConfig
from lrlora.training.figure import rank_heatmap
from lrlora.training.guard import NonFiniteGuard
from lrlora.training.model import build, precision_of
from lrlora.training.scoring import results_of, scoring_parts
from lrlora.tuner.callback import TauCallback
from lrlora.tuner.explain import computation_of
from lrlora.tuner.optimize import param_groups
from lrlora.tuner.ranks import LayerRank, layer_ranks, rank_warnings
from lrlora.tuner.records import RankCallback


@dataclass
class RunResult:
    """What a run ended with; `ranks` is empty for method "lora".

    Args:
        folder: the run folder.
        metrics: as in metrics.json.
        ranks: as in ranks.json.
        warnings: what is wrong with the learned ranks, in words.
        compared: the result of plain LoRA with the same settings, if it was trained.
    """

    folder: Path
    metrics: dict[str, Any]
    ranks: list[LayerRank]
    warnings: list[str]
    compared: RunResult | None = None


def train(config: TrainConfig, callbacks: Sequence[TrainerCallback] = ()) -> RunResult:
    """Train an adapter and write a run folder; a run that was killed goes on where its last checkpoint stands.

    The folder holds adapter/ (as PEFT saves it), config.json (settings, versions), metrics.json, ranks.json, ranks.png,
    ranks.jsonl (the ranks while training), checkpoints/, and lora/ (the same for plain LoRA) where the config compares.
    A finished run is not trained again.

    Args:
        config: the settings.
        callbacks: of transformers.Trainer, for whatever else should happen while training.

    Returns:
        The metrics and ranks that the folder holds.

    Raises:
        InputError: settings, data, model or folder that cannot work; a NaN in the loss.
    """
    out = Path(config.out_folder()).expanduser()
    if not run_folder.check(out, dataclasses.asdict(config), config.overwrite):
        _train_one(config, out, callbacks)
    compared = None
    if config.compares:
        beside = dataclasses.replace(config, method="lora", out=str(out / "lora"), compare=False, overwrite=False)
        compared = train(beside, callbacks)
    return dataclasses.replace(read_result(out), compared=compared)


def read_result(out: Path) -> RunResult:
    """What a finished run folder holds."""
    metrics = run_folder.read(out / "metrics.json")
    ranks_file = out / "ranks.json"
    rows = [LayerRank(**row) for row in run_folder.read(ranks_file)] if ranks_file.exists() else []
    return RunResult(out, metrics, rows, metrics.get("warnings", []))


def _train_one(config: TrainConfig, out: Path, callbacks: Sequence[TrainerCallback]) -> None:
    set_seed(config.seed)
    task = load_task(config.data_source())
    for note in task.notes:
        _say(note)
    model, tokenizer = build(config, task)
    if config.verbose and config.method == "lrlora":
        for line in computation_of(model, torch.bfloat16 if precision_of(config.precision) == "bf16" else None):
            print(line, file=sys.stderr)
    if _is_first_process():
        run_folder.start(out, dataclasses.asdict(config), versions(), config.overwrite)
    length = length_of_rows(config.max_length, tokenizer, model, _say)
    train_rows, evaluation_rows = encode(task, tokenizer, length, config.template, _say)
    trainer = make_trainer(config, task, model, tokenizer, train_rows, evaluation_rows, out / "checkpoints")
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise InputError(
            "lrlora train runs in one process or under DDP, got FSDP or DeepSpeed; give transformers.Trainer the model "
            "instead, see docs/peft.md"
        )
    if config.method == "lrlora" and config.rank_steps != 0:
        trainer.add_callback(RankCallback(out, config.rank_steps, log=_tracked(trainer, config)))
    for callback in callbacks:
        trainer.add_callback(callback)
    # no process looks at the folder before the first one has made it
    trainer.accelerator.wait_for_everyone()
    checkpoint = run_folder.last_checkpoint(out / "checkpoints")
    started = time.perf_counter()
    # the Trainer prints its log lines on stdout, which is for the result
    with contextlib.redirect_stdout(sys.stderr):
        trained = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        wall_s = time.perf_counter() - started
        evaluated = trainer.evaluate()
    metrics = {
        "method": config.method,
        "task": task.name,
        "source": task.source,
        "train_rows": len(task.train),
        "eval_rows": len(task.evaluation),
        "metric": task.metrics[0] if task.metrics else "loss",
        **results_of(evaluated),
        "train_loss": trained.training_loss,
        "steps": trainer.state.global_step,
        "wall_s": wall_s,
        "was_resumed": checkpoint is not None,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if _is_first_process():
        _write_results(config, trainer, metrics, out)
    trainer.accelerator.wait_for_everyone()


def _say(line: str) -> None:
    if _is_first_process():
        print(f"warning: {line}", file=sys.stderr)


def _is_first_process() -> bool:
    # torchrun and accelerate say so in the environment, before anything is set up
    return int(os.environ.get("RANK", "0")) == 0


def _write_results(config: TrainConfig, trainer: Trainer, metrics: dict[str, Any], out: Path) -> None:
    run_folder.save_adapter(trainer.model, trainer.processing_class, out / "adapter")
    if config.method == "lrlora":
        rows = layer_ranks(cast(torch.nn.Module, trainer.model))
        metrics["warnings"] = rank_warnings(rows, config.phi)
        write_json(out / "ranks.json", [row.as_dict() for row in rows])
        rank_heatmap(rows, out / "ranks.png")
    # written last: a folder with metrics.json is a finished run
    write_json(out / "metrics.json", metrics)


def make_trainer(
    config: TrainConfig,
    task: TaskData,
    model: Any,
    tokenizer: Any,
    train_rows: Any,
    evaluation_rows: Any,
    out: Path,
    saves: bool = True,
) -> Trainer:
    """transformers' Trainer as `lrlora train` sets it up; also for models of other methods, and without an adapter.

    Args:
        config: the settings; those of the adapter are not read.
        task: what is trained.
        model: the model, adapted or not.
        tokenizer: of the model.
        train_rows: encoded rows.
        evaluation_rows: encoded rows, or None.
        out: folder of the checkpoints.
        saves: write checkpoints.

    Raises:
        InputError: a setting that transformers refuses.
    """
    groups = param_groups(model, config.learning_rate, config.c_learning_rate, config.weight_decay)
    try:
        arguments = TrainingArguments(
            output_dir=str(out),
            num_train_epochs=config.epochs,
            max_steps=config.max_steps,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=2 * config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            gradient_checkpointing=config.gradient_checkpointing,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            lr_scheduler_type=config.lr_scheduler,
            warmup_steps=config.warmup_steps,
            max_grad_norm=config.max_grad_norm,
            bf16=precision_of(config.precision) == "bf16",
            # else several processes on CPUs would each train alone
            use_cpu=not torch.accelerator.is_available(),
            seed=config.seed,
            save_strategy="steps" if saves else "no",
            save_steps=config.save_steps,
            save_total_limit=2,
            logging_steps=20,
            logging_nan_inf_filter=False,
            report_to=config.report_to,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=True,
            label_names=["labels"],
            prediction_loss_only=task.kind == "causal",
            disable_tqdm=not saves,
        )
    except ValueError as error:
        raise InputError(str(error).splitlines()[0]) from error
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=evaluation_rows,
        **scoring_parts(task, tokenizer),
        # the groups travel in the optimizer's arguments: the way that the Trainer offers for its own methods
        optimizer_cls_and_kwargs=(torch.optim.AdamW, {"params": groups, "lr": config.learning_rate}),
        callbacks=[TauCallback(), NonFiniteGuard()],
    )


def _tracked(trainer: Trainer, config: TrainConfig) -> Any:
    # without a tracker the means would only be lines between the losses
    return None if config.report_to in ([], ["none"]) else trainer.log


def versions() -> dict[str, str]:
    """What a number depends on besides the settings: versions, threads, device."""
    import peft
    import transformers

    return {
        "lrlora": lrlora.__version__,
        "peft": peft.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
