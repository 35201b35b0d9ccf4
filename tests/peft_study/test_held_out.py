"""Tasks that are scored on held-out rows: how these are split off, and in which batches they are scored."""

import dataclasses
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lrlora import InputError
from lrlora.data.encode import encode
from lrlora.evaluation.score import score
from peft_study.kinds import load_parts
from tests.peft_study.conftest import sentence_rows, small_study


def test_test_rows_off_the_training_file_leave_the_evaluation_file_alone(tiny_encoder, words):
    usual = small_study(tiny_encoder, words)
    task = dataclasses.replace(usual.tasks[0], train_rows=24, test_rows=8, test_from="training")
    parts = load_parts(usual, task)
    sides: list[Any] = [parts.final.train, parts.search.evaluation, parts.final.evaluation]
    assert [len(side) for side in sides] == [24, 16, 8]
    texts = [set(side["text"]) for side in sides]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 48
    assert set.union(*texts) <= {row["sentence"] for row in sentence_rows()[:64]}
    with pytest.raises(InputError, match=r"has 64 rows to train on, and validation_rows takes 16 of .* test_rows 48"):
        load_parts(usual, dataclasses.replace(task, train_rows=None, test_rows=48))


def test_rows_are_scored_the_same_in_whatever_batches_they_come(tiny_encoder, words):
    study = small_study(tiny_encoder, words)
    data = load_parts(study, study.tasks[0]).final
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoder, num_labels=2)
    long = [*data.evaluation.to_list(), {**data.evaluation[0], "text": "warm " * 12}]
    data = dataclasses.replace(data, evaluation=type(data.evaluation).from_list(long))
    _, encoded = encode(data, tokenizer, 32)
    one_by_one = score(model, tokenizer, data, encoded, batch_size=1)
    together = score(model, tokenizer, data, encoded, batch_size=7)
    assert together == pytest.approx(one_by_one, abs=1e-6)
    logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in long]
    right = [int(row.argmax()) == each["label"] for row, each in zip(logits, long, strict=True)]
    assert together["accuracy"] == sum(right) / len(right)
