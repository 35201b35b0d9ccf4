"""train(config): from settings to a run folder with the adapter, its metrics and its learned ranks."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, set_seed

from lrlora.data import TaskData
from lrlora.data.encode import encode
from lrlora.data.formats import said_of
from lrlora.data.length import length_of_rows
from lrlora.data.tasks import IMAGES, LANGUAGE
from lrlora.errors import InputError
from lrlora.evaluation.predictions import predictions_of
from lrlora.files import explained
from lrlora.ops import library
from lrlora.ranks.measure import LayerRank, rank_warnings
from lrlora.ranks.record import RankCallback
from lrlora.saved.card import card_of_run
from lrlora.saved.identity import digest_of_model, digest_of_rows
from lrlora.saved.lock import unlock
from lrlora.saved.provenance import library_versions
from lrlora.saved.run import RunFolder
from lrlora.training import processes
from lrlora.training.config import TrainConfig
from lrlora.training.heads import load_task_for
from lrlora.training.log import LogFile, mean_loss
from lrlora.training.model import build, is_bf16
from lrlora.training.of_kind import check_kind
from lrlora.training.resume import ended_bars, run_trainer
from lrlora.training.sharding import Held, check_environment, held_at_the_end
from lrlora.training.stop import Interrupted, Stop
from lrlora.training.trainer import check_trackers, make_trainer
from lrlora.tuner.explain import computation_of
from lrlora.tuner.sharded import size_of


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


def train(config: TrainConfig, callbacks: Sequence[TrainerCallback] = (), verbose: bool = False) -> RunResult:
    """Train an adapter and write a run folder; a run that was stopped is resumed from its last checkpoint.

    The folder holds adapter/ (as PEFT saves it), config.json (settings, versions, and what was read, as numbers),
    metrics.json, ranks.json, ranks.png, log.jsonl (losses while training), ranks.jsonl (the ranks while training),
    checkpoints/, and lora/ (the same for plain LoRA) where the config compares. A finished run is not trained again.
    SIGTERM and Ctrl-C end the training with a checkpoint.

    Args:
        config: the settings.
        callbacks: of transformers.Trainer, for anything else that should happen while training.
        verbose: print on stderr how the adapted layers are computed, and why.

    Returns:
        The metrics and ranks that the folder holds.

    Raises:
        InputError: settings, data, model or folder that cannot work; a NaN in the loss.
        Interrupted: a KeyboardInterrupt that says what is left; on SIGTERM and on Ctrl-C.
    """
    check_trackers(config.report_to)
    check_environment()
    stop = Stop()
    with stop.listening():
        result = _train(config, [*callbacks, stop], stop, config.overwrite, verbose)
        if config.compares:
            beside = dataclasses.replace(
                config, method="lora", out=str(RunFolder(result.folder).lora.path), compare=False, overwrite=False
            )
            result.compared = _train(beside, [*callbacks, stop], stop, config.overwrite)
    return result


def _train(
    config: TrainConfig,
    callbacks: Sequence[TrainerCallback],
    stop: Stop,
    starts_again: bool,
    verbose: bool = False,
) -> RunResult:
    out, config = RunFolder(Path(config.out_folder())), config.with_absolute_paths()
    with _told_what_is_left(config, out, starts_again):
        if _is_finished(config, out):
            ended = datetime.fromtimestamp(out.ended)
            processes.tell(f"{out.path} finished before, on {ended:%Y-%m-%d at %H:%M}; shown again")
        else:
            _train_one(config, out, callbacks, stop, verbose)
    return read_result(out.path)


def read_result(out: Path) -> RunResult:
    """What a finished run folder holds."""
    run = RunFolder(out)
    metrics = run.metrics
    return RunResult(out, metrics, run.ranks or [], metrics.get("warnings", []))


@contextlib.contextmanager
def _told_what_is_left(config: TrainConfig, out: RunFolder, starts_again: bool) -> Iterator[None]:
    """Add to an interruption what the folder holds, and what the same command will do."""
    try:
        yield
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        raise Interrupted(number, out.what_is_left(config.settings(), starts_again)) from error


def _is_finished(config: TrainConfig, out: RunFolder) -> bool:
    """Whether this very run is there, with the same rows and base as now, as far as they can be read."""
    settings = config.settings()
    if not out.check(settings, config.overwrite):
        return False
    if not out.inputs:
        processes.tell(
            f"{out.path} is of an earlier version: whether its rows or its base model have changed since is not known"
        )
        return True
    try:
        inputs = inputs_of(config, load_task_for(config.model, config.data_source(), options=config.base_options))
    except InputError as error:
        processes.tell(f"whether what {out.path} was trained on has changed since is not known: {error}")
        return True
    return out.check(settings, config.overwrite, inputs)


def inputs_of(config: TrainConfig, task: TaskData) -> dict[str, str]:
    """What a run reads, as numbers: a changed row or weight gives another one."""
    return {"data": digest_of_rows(task), "model": digest_of_model(config.model, config.revision)}


def _train_one(
    config: TrainConfig, out: RunFolder, callbacks: Sequence[TrainerCallback], stop: Stop, verbose: bool
) -> None:
    set_seed(config.seed)
    if config.method == "lrlora":
        library.prepare()
    task = load_task_for(config.model, config.data_source(), _warn, config.base_options)
    check_kind(config, task)
    if task.kind in LANGUAGE:
        processes.tell(f"{task.files[0]}: read as {said_of(task.train)}")
    elif task.kind == IMAGES:
        processes.tell(f"{task.files[0]}: read as images; their class, one of {len(task.labels)}, is learned")
    for note in task.notes:
        _warn(note)
    model, tokenizer = build(config, task)
    in_bf16 = is_bf16(config.precision)
    if verbose and config.method == "lrlora":
        for line in computation_of(model, torch.bfloat16 if in_bf16 else None):
            processes.tell(line)
    length, train_rows, evaluation_rows = _encoded(config, task, tokenizer, model)
    with _begun(config, out, task) as checkpoint:
        if checkpoint is not None and not out.inputs:
            processes.tell(
                f"{out.path} was begun by an earlier version: whether its rows or base have changed since is not known"
            )
        trainer = make_trainer(config, task, model, tokenizer, train_rows, out.checkpoints, evaluation_rows, length)
        _add_callbacks(trainer, config, out.path, callbacks)
        # the Trainer prints its log lines on stdout, which is for the result
        goes_on = explained(out.path, "the same command goes on from the last checkpoint, if there is one")
        with contextlib.redirect_stdout(sys.stderr), ended_bars(trainer), goes_on:
            started = time.perf_counter()
            with stop.at_the_next_step():
                run_trainer(trainer, checkpoint)
            wall_s = time.perf_counter() - started
            measured = trainer.evaluate_trained()  # pyright: ignore[reportAttributeAccessIssue]
        metrics = {
            "method": config.method,
            "task": task.name,
            "source": task.source,
            "train_rows": len(task.train),
            "eval_rows": len(task.evaluation),
            "metric": task.metrics[0] if task.metrics else "loss",
            **{name.removeprefix("eval_"): value for name, value in measured.items()},
            "train_loss": mean_loss(trainer.state.log_history),
            "steps": trainer.state.global_step,
            "wall_s": wall_s,
            "was_resumed": checkpoint is not None,
            "trainable_parameters": sum(size_of(p) for p in model.parameters() if p.requires_grad),
            **({"skipped_images": task.skipped} if task.kind == IMAGES else {}),
        }
        held = held_at_the_end(trainer, config.method == "lrlora")
        predicted = predictions_of(task, trainer.outputs) if task.kind == IMAGES else None  # pyright: ignore[reportAttributeAccessIssue]
        processes.in_first(lambda: _write_results(config, trainer, metrics, out, held, predicted))


def _encoded(config: TrainConfig, task: TaskData, tokenizer: Any, model: Any) -> tuple[int | None, Any, Any]:
    """Tokens of a row at most, None of images, and the rows to train on and to evaluate on."""
    if task.kind == IMAGES:
        from lrlora.data.pixels import pixels_of

        return None, *pixels_of(task, tokenizer, config.augment, config.seed)
    length = length_of_rows(config.max_length, tokenizer, model, _warn)
    return length, *encode(task, tokenizer, length, config.template, _warn)


@contextlib.contextmanager
def _begun(config: TrainConfig, out: RunFolder, task: TaskData) -> Iterator[Path | None]:
    """The run folder, locked while this training lasts; gives the checkpoint to resume from."""
    settings, inputs = config.settings(), inputs_of(config, task)
    out.check(settings, config.overwrite, inputs)
    held: list[Any] = []

    def begin() -> Path | None:
        held.append(out.lock())
        return out.start(settings, versions(), inputs, config.overwrite)

    try:
        yield processes.in_first(begin)
    finally:
        for lock in held:
            unlock(lock)


def _add_callbacks(trainer: Trainer, config: TrainConfig, out: Path, callbacks: Sequence[TrainerCallback]) -> None:
    if config.method == "lrlora" and config.rank_steps != 0:
        trainer.add_callback(RankCallback(out, config.rank_steps, log=_tracked(trainer, config)))
    factor = 10.0 if config.c_learning_rate is None else config.c_learning_rate / config.learning_rate
    # LogFile is the last: a checkpoint that another callback asks for then has a line in the log
    for callback in (*callbacks, LogFile(out, factor if config.method == "lrlora" else None)):
        trainer.add_callback(callback)


def _warn(line: str) -> None:
    processes.tell(f"warning: {line}")


def _write_results(
    config: TrainConfig, trainer: Trainer, metrics: dict[str, Any], out: RunFolder, held: Held,
    predicted: list[dict[str, Any]] | None,
) -> None:  # fmt: skip
    rows = held.rows
    if config.method == "lrlora":
        # imported here: all else works without matplotlib, and sooner
        from lrlora.ranks.heatmap import rank_heatmap

        metrics["warnings"] = rank_warnings(rows, config.adapter.phi)
        out.save_ranks(rows)
        rank_heatmap(rows, out.picture)
    model, tokenizer = trainer.model, trainer.processing_class
    card = card_of_run(out, config.settings(), model, tokenizer, metrics, rows)
    out.save_adapter(model, tokenizer, config.pooling, card, processes.tell, config.base_options, held.state)
    if predicted is not None:
        out.save_predictions(predicted)
    out.save_metrics(metrics)


def _tracked(trainer: Trainer, config: TrainConfig) -> Any:
    # without a tracker the means would only be lines between the losses
    return None if config.report_to in ([], ["none"]) else trainer.log


def versions() -> dict[str, str]:
    """What a number depends on besides the settings: versions, threads, device."""
    return {
        **library_versions(),
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
    }
