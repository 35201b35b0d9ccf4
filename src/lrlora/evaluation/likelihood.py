"""Accuracy by likelihood of the choices, computed by lm-eval on rows that we have: nothing is downloaded.

lm-eval's own tasks read the hub. Ours are built in code from the rows: local files, fixed subsets and models in
memory work. Words and metrics are those of lm-eval's tasks of the same name.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lrlora.data.commonsense import COMMONSENSE
from lrlora.data.encode import Template, prompt_text, uses_chat
from lrlora.errors import InputError
from lrlora.evaluation.questions import HAS_ACC_NORM, Asked, ask

Prompt = Literal["question", "instruction"]


@dataclass(frozen=True)
class ChoiceScores:
    """What lm-eval found.

    Args:
        acc: fraction of rows whose most likely choice is the right one.
        acc_norm: the same with every log-likelihood divided by the choice's length in characters; None where lm-eval
            does not have it for the task.
        acc_stderr: standard error of acc over the rows; says nothing about training seeds.
        choice_loss: -log(likelihood of the right choice / sum over all choices), in nats, mean over the rows; log n
            where all n are alike. It tells models apart even where their accuracies are at chance. Not lm-eval's.
        log_likelihoods: of every row's choices, summed over their tokens.
        predictions: number of the most likely choice of every row.
    """

    acc: float
    acc_norm: float | None
    acc_stderr: float
    choice_loss: float
    log_likelihoods: list[list[float]]
    predictions: list[int]

    def as_dict(self) -> dict[str, float]:
        """The numbers without the rows."""
        norm = {} if self.acc_norm is None else {"acc_norm": self.acc_norm}
        rest = {"acc_stderr": self.acc_stderr, "choice_loss": self.choice_loss, "rows": len(self.predictions)}
        return {"acc": self.acc, **norm, **rest}


def score_likelihood(
    model: Any,
    tokenizer: Any,
    task: str,
    rows: list[dict[str, Any]],
    batch_size: int = 8,
    prompt: Prompt = "question",
    template: Template = "auto",
    is_bf16: bool = False,
) -> ChoiceScores:
    """Compare the choices of every row by their likelihood; arguments as in `score_commonsense`.

    Raises:
        InputError: lm-eval is not installed, or a prompt that does not exist.
    """
    if prompt not in ("question", "instruction"):
        raise InputError(f"prompt must be 'question' or 'instruction', got {prompt!r}")
    if prompt == "question":
        asked = [ask(task, row) for row in rows]
    else:
        is_chat = uses_chat(tokenizer, template)
        asked = [_as_trained(task, row, tokenizer, is_chat) for row in rows]
    has_norm = prompt == "question" and task in HAS_ACC_NORM
    # a text for every choice to be read first, or a text for every choice to be scored
    is_gap = prompt == "question" and task == "winogrande"
    delimiter = " " if prompt == "question" else ""
    # lm-eval opens an autocast of its own, which would turn off one around it
    precision = {"mixed_precision_dtype": "bfloat16" if is_bf16 else None}
    harness = {"pretrained": model, "tokenizer": tokenizer, "batch_size": batch_size, **precision}
    found = _run(harness, asked, has_norm, is_gap, delimiter)
    result = found["results"]["commonsense"]
    samples = sorted(found["samples"]["commonsense"], key=lambda sample: sample["doc_id"])
    likelihoods = [[float(pair[0]) for pair in sample["filtered_resps"]] for sample in samples]
    return ChoiceScores(
        acc=float(result["acc,none"]),
        acc_norm=float(result["acc_norm,none"]) if has_norm else None,
        # one row has no spread
        acc_stderr=float(result["acc_stderr,none"]) if len(rows) > 1 else float("nan"),
        choice_loss=statistics.fmean(
            _surprise(row, asked_row.label) for row, asked_row in zip(likelihoods, asked, strict=True)
        ),
        log_likelihoods=likelihoods,
        predictions=[max(range(len(row)), key=row.__getitem__) for row in likelihoods],
    )


def _surprise(log_likelihoods: list[float], label: int) -> float:
    return -float(torch.tensor(log_likelihoods, dtype=torch.float64).log_softmax(0)[label])


def _as_trained(task: str, row: dict[str, Any], tokenizer: Any, is_chat: bool) -> Asked:
    answers = COMMONSENSE[task].answers(len(row["choices"]))
    context = prompt_text(row["instruction"], tokenizer, is_chat)
    return Asked([context] * len(answers), [f"the correct answer is {answer}" for answer in answers], row["label"])


def _run(harness: dict[str, Any], asked: list[Asked], has_norm: bool, is_gap: bool, delimiter: str) -> dict[str, Any]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from lm_eval import evaluator
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise InputError(f'scoring by likelihood needs {error.name}: pip install "lrlora[study]"') from error
    from datasets import Dataset

    docs = Dataset.from_list(
        [{"contexts": a.contexts, "continuations": a.continuations, "label": a.label} for a in asked]
    )
    metrics = ("acc", "acc_norm") if has_norm else ("acc",)
    config: dict[str, Any] = {
        "task": "commonsense",
        "custom_dataset": lambda **_: {"test": docs},
        "test_split": "test",
        "output_type": "multiple_choice",
        # where the choices are read and not scored, lm-eval wants the number here and the text as target
        "doc_to_text": (lambda doc: doc["label"]) if is_gap else (lambda doc: doc["contexts"][0]),
        "doc_to_choice": (lambda doc: doc["contexts"]) if is_gap else (lambda doc: doc["continuations"]),
        "doc_to_target": (lambda doc: doc["continuations"][0]) if is_gap else (lambda doc: doc["label"]),
        "target_delimiter": delimiter,
        "num_fewshot": 0,
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
    }
    with quiet(), left_as_it_was(harness["pretrained"], harness["tokenizer"]):
        # `evaluate`, not `simple_evaluate`: the latter sets the seeds of the whole process
        return evaluator.evaluate(  # pyright: ignore[reportReturnType]
            HFLM(**harness),
            {"commonsense": ConfigurableTask(config=config)},  # pyright: ignore[reportArgumentType]
            # of a mean the standard error is a formula, but 0 would leave it out
            bootstrap_iters=1,
        )


@contextlib.contextmanager
def left_as_it_was(model: Any, tokenizer: Any) -> Iterator[None]:
    """Give a model and a tokenizer back what lm-eval changes of them: the mode, and how is padded."""
    was_training, pad_token, side = model.training, tokenizer.pad_token, tokenizer.padding_side
    try:
        yield
    finally:
        model.train(was_training)
        tokenizer.pad_token, tokenizer.padding_side = pad_token, side


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what lm-eval says of itself off the terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # lm-eval draws three progress bars on every call, which a study makes by the hundred
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
