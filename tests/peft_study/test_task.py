"""The fields of a task: which go together."""

from __future__ import annotations

import pytest

from lrlora import InputError
from peft_study.spec import Task


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"facts": 0}, "facts must be at least 1, got 0"),
        ({"values": 1}, "values must be at least 2, got 1"),
        ({"facts": None}, "needs facts, how many; or data, a file of pairs"),
        ({"question_column": "q", "data": "f.jsonl"}, "needs both question_column and answer_column"),
        ({"question_column": "q", "answer_column": "a"}, "names columns of pairs, and no data that has them"),
        ({"data": "f.jsonl"}, "name their question_column and answer_column"),
        ({"data": "f.jsonl", "question_column": "q", "answer_column": "a", "values": 4}, "values is of drawn facts"),
        ({"facts": 4, "draw_seed": 1}, "draw_seed draws pairs of a file"),
        ({"pattern": "{answer} {question}"}, "pattern needs {question} once and {answer} once behind it"),
        ({"commonsense": ("obqa",)}, "commonsense has no meaning for task 'held' of kind facts"),
        ({"label_column": "score"}, "label_column has no meaning for task 'held' of kind facts"),
        ({"validation_rows": 5}, "validation_rows has no meaning for task 'held' of kind facts"),
        ({"kind": "causal"}, "facts is of tasks of kind facts; give task 'held' kind: facts"),
        ({"kind": None, "facts": None, "forgetting": 3}, "forgetting is of tasks of kind facts"),
    ],
)
def test_what_does_not_go_with_facts_is_refused(fields, said):
    with pytest.raises(InputError) as caught:
        Task(**{"name": "held", "kind": "facts", "facts": 10, **fields})
    assert said in str(caught.value)
