"""Tasks of kind "facts": the same rows are trained on, choose the rate, and are recalled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lrlora.data import DataSource, TaskData
from lrlora.data.embedded import news_articles
from lrlora.data.encode import Say
from lrlora.data.facts import (
    PATTERN,
    Facts,
    drawn_facts,
    encode_labelled,
    encode_recalled,
    encode_texts,
    read_facts,
    written,
)
from lrlora.errors import InputError
from lrlora.internals import is_causal_only
from lrlora.saved.adapter import base_config
from peft_study.base import with_frozen_head
from peft_study.capacity import UNRELATED_TOKENS, score_facts, unrelated_nats
from peft_study.held_out import task_type_of
from peft_study.result import Phase
from peft_study.rows import Parts
from peft_study.spec import Study, Task
from peft_study.task import settings_of
from peft_study.task_kind import TaskKind, Trained

_TEXTS = "unrelated"


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


def _splits(study: Study, task: Task) -> Parts:
    facts = load_facts(study, task)
    return Parts(facts, facts)


def _facts_of(study: Study, task: Task) -> Facts:
    if task.question_column is None or task.answer_column is None:
        assert task.facts is not None
        return drawn_facts(task.facts, task.values)
    source = DataSource(data=study.data_of(task), task=task.task, subset=task.subset)
    return read_facts(source, task.question_column, task.answer_column, task.facts, task.draw_seed)


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


def _unrelated(study: Study, task: Task) -> Mapping[Phase, Mapping[str, Any]]:
    """Texts without any of the facts, on which forgetting is measured; none where the task does not ask."""
    if task.forgetting is None:
        return {}
    texts = {_TEXTS: news_articles(task.forgetting)}
    return {"search": texts, "final": texts}


def encode_facts(data: TaskData, tokenizer: Any, max_length: int) -> Any:
    """Tokenise the rows of `load_facts`; errors as in `lrlora.data.facts`."""
    encode = encode_recalled if data.kind == "causal" else encode_labelled
    return encode(data.train, tokenizer, max_length)


def _encode(task: Task, data: TaskData, tokenizer: Any, seed: int, say: Say) -> tuple[Any, Any]:
    rows = encode_facts(data, tokenizer, task.max_length)
    return rows, rows


def _before(task: Task, parts: Parts, base: Any, tokenizer: Any, is_bf16: bool) -> dict[str, float]:
    """Nats per token of unrelated text before any adapter."""
    if not parts.further:
        return {}
    if torch.accelerator.is_available():
        base.to(torch.accelerator.current_accelerator())  # where the training will put it anyway
    return {"unrelated_nats_before": _nats_of_texts(parts, base, tokenizer, is_bf16)}


def _nats_of_texts(parts: Parts, model: Any, tokenizer: Any, is_bf16: bool) -> float:
    rows = encode_texts(parts.further["final"][_TEXTS], tokenizer, UNRELATED_TOKENS)
    return unrelated_nats(model, tokenizer, parts.final, rows, is_bf16)


def _score(trained: Trained) -> tuple[str, dict[str, float]]:
    """The bits of drawn facts; of pairs exact recall, or in the search the nats, which tell close rates apart."""
    data, model, tokenizer = trained.data, trained.model, trained.tokenizer
    found = score_facts(model, tokenizer, data, trained.encoded, trained.is_bf16)
    if trained.before:
        after = _nats_of_texts(trained.parts, model, tokenizer, trained.is_bf16)
        found |= {**trained.before, "unrelated_nats_after": after}
    is_search_of_pairs = trained.phase == "search" and not data.labels
    return "nats_per_fact" if is_search_of_pairs else data.main_metric, found


FACTS = TaskKind(
    splits=_splits,
    further=_unrelated,
    reads=lambda task: task.question_column is not None,
    assumed=lambda study, task: (task.facts, None),  # pairs, for a causal model
    settings=lambda task, phase: settings_of(task),
    task_type=task_type_of,
    tokens=lambda study, task, config: task.max_length,
    encode=_encode,
    is_encoded_by_seed=False,
    under_arm=with_frozen_head,
    before=_before,
    score=_score,
    packages=lambda task: (),
    # of a capacity the best rate is often the last one that holds: one that does not has lost, like any other
    diverging_loses=True,
    tuned="rates chosen on the facts themselves",
    measured="of all facts",
)


def is_causal_model(study: Study) -> bool:
    """Whether the base of a study predicts tokens one after the other: its files say so, or else its type.

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
