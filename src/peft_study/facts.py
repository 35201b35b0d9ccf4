"""The rows of tasks of kind "facts". The same rows train, choose the rate, and are recalled."""

from __future__ import annotations

from typing import Any

from lrlora.data import DataSource, TaskData
from lrlora.data.facts import (
    PATTERN,
    Facts,
    drawn_facts,
    encode_labelled,
    encode_recalled,
    read_facts,
    written,
)
from lrlora.errors import InputError
from lrlora.internals import is_causal_only
from lrlora.saved.adapter import base_config
from peft_study.spec import Study, Task


def load_facts(study: Study, task: Task) -> TaskData:
    """The facts of a task as rows for the study's model: of kind "classification" for an encoder, else "causal".

    Raises:
        InputError: rows that cannot be read, too few of them, or what the model cannot be asked.
    """
    is_causal = is_causal_model(study)
    if not is_causal and task.question_column is not None:
        raise InputError(
            f"task {task.name!r} recalls answers of a file, which takes a causal model, and {_model_of(study)} is "
            "none; give the study one, or draw facts"
        )
    causal_only = [name for name in ("forgetting", "pattern") if getattr(task, name) not in (None, PATTERN)]
    if not is_causal and causal_only:
        raise InputError(f"{causal_only[0]} takes a causal model, and {_model_of(study)} is none; leave it out")
    if is_causal and task.pooling != "auto":
        raise InputError(f"pooling is of encoders, and {_model_of(study)} is a causal model; leave it out")
    facts = _facts_of(study, task)
    return _recalled(task, facts) if is_causal else _labelled(task, facts)


def _facts_of(study: Study, task: Task) -> Facts:
    if task.question_column is None or task.answer_column is None:
        assert task.facts is not None
        return drawn_facts(task.facts, task.values)
    source = DataSource(data=study.data_of(task), task=task.task, subset=task.subset)
    return read_facts(source, task.question_column, task.answer_column, task.facts)


def _labelled(task: Task, facts: Facts) -> TaskData:
    from datasets import Dataset

    number_of = {value: number for number, value in enumerate(facts.values)}
    columns = {
        "text": [f"{question} is" for question in facts.questions],
        "label": [number_of[answer] for answer in facts.answers],
    }
    rows = Dataset.from_dict(columns)
    return TaskData(
        task.name, "classification", rows, rows, facts.values, metrics_of(True), facts.source, notes=facts.notes
    )


def _recalled(task: Task, facts: Facts) -> TaskData:
    from datasets import Dataset

    pairs = [written(task.pattern, q, a) for q, a in zip(facts.questions, facts.answers, strict=True)]
    rows = Dataset.from_dict({"text": [text for text, _ in pairs], "prompt": [prompt for _, prompt in pairs]})
    metrics = metrics_of(bool(facts.values))
    return TaskData(task.name, "causal", rows, rows, facts.values, metrics, facts.source, notes=facts.notes)


def metrics_of(is_drawn: bool) -> tuple[str, ...]:
    """Names of the metrics of facts, the main one first; of pairs of a file nobody knows the bits."""
    return ("bits", "bits_per_parameter", "exact_recall", "nats_per_fact")[0 if is_drawn else 2 :]


def encode_facts(data: TaskData, tokenizer: Any, max_length: int) -> Any:
    """Tokenise the rows of `load_facts`; errors as in `lrlora.data.facts`."""
    encode = encode_recalled if data.kind == "causal" else encode_labelled
    return encode(data.train, tokenizer, max_length)


def is_causal_model(study: Study) -> bool:
    """Whether the base of a study predicts tokens one after the other: its files say so, or its type alone.

    Raises:
        InputError: a model of which there is no config.
    """
    if study.model is None and study.model_config is None:
        return False
    described = base_config(study.model) if study.model_config is None and study.model else study.model_config
    if described is None:
        raise InputError(
            f"cannot read the config of {_model_of(study)}; give the study another model, or a model_config"
        )
    named = described.get("architectures")
    if named:
        return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in named)
    return is_causal_only(described.get("model_type"))


def _model_of(study: Study) -> str:
    return study.model or "the embedded encoder"
