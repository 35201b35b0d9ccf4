"""Tasks of lm-eval (EleutherAI's lm-evaluation-harness) as what models are measured by."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch

from lrlora.data import Kind
from lrlora.data.encode import Say
from lrlora.errors import InputError, first_lines
from lrlora.evaluation.likelihood import left_as_it_was, quiet


@dataclass(frozen=True)
class HarnessOptions:
    """Arguments of lm-eval's `simple_evaluate` under their own names, and the include_path of its `TaskManager`."""

    num_fewshot: int | None = field(
        default=None, metadata={"help": "of --lm_eval: examples before each question; the task's own if left out"}
    )
    limit: float | None = field(
        default=None, metadata={"help": "of --lm_eval: rows of each task, or below 1 the fraction of them"}
    )
    include_path: str | None = field(
        default=None, metadata={"help": "of --lm_eval: a folder with task files (YAML) of your own"}
    )
    apply_chat_template: bool = field(
        default=False, metadata={"help": "of --lm_eval: write questions with the tokenizer's chat template"}
    )
    fewshot_as_multiturn: bool = field(
        default=True, metadata={"help": "of --lm_eval: with a chat template, examples are turns of the chat"}
    )
    system_instruction: str | None = field(
        default=None, metadata={"help": "of --lm_eval: message of the system before every question"}
    )
    gen_kwargs: str | None = field(
        default=None, metadata={"help": "of --lm_eval: of tasks that generate, such as temperature=0,max_gen_toks=64"}
    )
    bootstrap_iters: int = field(
        default=100000, metadata={"help": "of --lm_eval: samples for standard errors that have no formula"}
    )
    fewshot_random_seed: int = field(default=1234, metadata={"help": "of --lm_eval: of the drawing of examples"})
    confirm_run_unsafe_code: bool = field(
        default=False, metadata={"help": "of --lm_eval: run code that the model writes, in tasks that do (HumanEval)"}
    )


@dataclass(frozen=True)
class Harness:
    """Tasks of lm-eval; a `lrlora.evaluation.measure.Measure`, made by `load_harness`.

    Args:
        tasks: names of lm-eval's tasks, groups or tags.
        metric: the first metric of the first task.
        count: rows of all tasks together.
        options: how they are asked.
        batch_size: sequences at once.
        is_bf16: compute in bfloat16, as a training in that precision does.
    """

    tasks: tuple[str, ...]
    metric: str
    count: int
    options: HarnessOptions = HarnessOptions()
    batch_size: int = 8
    is_bf16: bool = False

    @property
    def task(self) -> str:
        """Names of the tasks."""
        return ", ".join(self.tasks)

    @property
    def source(self) -> str:
        """The version of lm-eval, on which its numbers depend."""
        return f"lm-eval {importlib.metadata.version('lm_eval')}"

    @property
    def kind(self) -> Kind:
        """The kind of model that they take."""
        return "causal"

    def score(self, model: Any, tokenizer: Any) -> dict[str, float]:
        """What lm-eval finds; the model, its tokenizer and all random numbers are left as they were.

        Returns:
            Every metric and its standard error by task, such as "hellaswag acc_norm" and "hellaswag acc_norm_stderr";
            with the filter behind it where a task has one, such as "gsm8k exact_match,strict-match".
        """
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM

        # lm-eval opens an autocast of its own
        precision = {"mixed_precision_dtype": "bfloat16" if self.is_bf16 else None}
        harness: dict[str, Any] = {
            "pretrained": model, "tokenizer": tokenizer, "batch_size": self.batch_size, **precision
        }  # fmt: skip
        arguments = dataclasses.asdict(self.options)
        manager = _manager(arguments.pop("include_path"))
        with left_as_it_was(model, tokenizer), _same_random_numbers():
            with quiet():
                lm = HFLM(**harness)
            found: Any = evaluator.simple_evaluate(
                lm, tasks=list(self.tasks), task_manager=manager, log_samples=False, **arguments
            )
        return {
            f"{task} {metric.removesuffix(',none')}": float(value)
            for task, metrics in found["results"].items()
            for metric, value in metrics.items()
            if isinstance(value, int | float) and "," in metric
        }


def load_harness(
    tasks: Sequence[str],
    options: HarnessOptions,
    batch_size: int = 8,
    is_bf16: bool = False,
    say: Say = lambda line: None,
) -> Harness:
    """Tasks of lm-eval, with their rows found.

    Args:
        tasks: names of lm-eval's tasks, groups or tags, or of task files in `options.include_path`.
        options: how they are asked.
        batch_size: sequences at once.
        is_bf16: as in `Harness`.
        say: gets a line for what the user should know.

    Raises:
        InputError: lm-eval is not installed, or cannot load a task; its message says why, such as a hub that is
            not reached.

    Example:
        load_harness(["arc_easy"], HarnessOptions(limit=100)).score(model, tokenizer)["arc_easy acc"]
    """
    if options.limit is not None and options.limit <= 0:
        raise InputError(f"limit must be above 0, a number of rows or a fraction of them, got {options.limit:g}")
    try:
        manager = _manager(options.include_path)
        loaded = manager.load(list(tasks))["tasks"]
        counts = {name: len(task.eval_docs) for name, task in loaded.items()}
    except ModuleNotFoundError as error:
        raise InputError(
            f'--lm_eval needs {error.name}, which is not installed: pip install "lrlora[study]"'
        ) from error
    except Exception as error:  # datasets and the code of a task raise what they like
        raise InputError(f"lm-eval cannot load {', '.join(tasks)}: {first_lines(error)}") from error
    if not loaded:
        raise InputError(f"lm-eval has no task {', '.join(tasks)}; `lm-eval ls tasks` lists them")
    for name, task in loaded.items():
        if options.num_fewshot and task.get_config("num_fewshot") == 0:
            say(f"{name} is asked without examples: its task file sets num_fewshot to 0")
    name, first = next(iter(loaded.items()))
    metrics = first.get_config("metric_list") or [{"metric": "acc"}]
    rows = sum(_limited(count, options.limit) for count in counts.values())
    return Harness(tuple(tasks), f"{name} {metrics[0]['metric']}", rows, options, batch_size, is_bf16)


def _limited(count: int, limit: float | None) -> int:
    if limit is None:
        return count
    return math.ceil(count * limit) if limit < 1 else min(count, int(limit))


@functools.cache
def _manager(include_path: str | None) -> Any:
    # it reads the task files of lm-eval, some ten thousand, which takes seconds
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """`simple_evaluate` sets the seeds of the whole process."""
    pythons, numpys = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(pythons)
        numpy.random.set_state(numpys)
