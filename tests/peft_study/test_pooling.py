"""The pooling of a task in a study: trained with it, known by it, counted with it."""

import dataclasses

import pytest

from lrlora import InputError
from peft_study.cell import Bench
from peft_study.estimate import estimates
from peft_study.plan import digests_of, final_cells
from peft_study.spec import Task
from tests.peft_study.conftest import small_study


def test_a_task_of_a_study_is_trained_with_its_pooling(tiny_encoder, words):
    rows, cells, counts = {}, {}, {}
    for pooling in ("auto", "mean"):
        study = small_study(tiny_encoder, words)
        study = dataclasses.replace(study, tasks=(dataclasses.replace(study.tasks[0], pooling=pooling),))
        cell = final_cells(study, digests_of(study), study.arms[1], study.tasks[0], 1e-2)[0]
        rows[pooling], cells[pooling] = Bench(study).run(cell), cell
        assert rows[pooling].status == "done", rows[pooling].reason
        counts[pooling] = estimates(study)[1].trainable_parameters
        assert counts[pooling] == rows[pooling].trainable_parameters
    assert cells["auto"].fingerprint != cells["mean"].fingerprint
    assert rows["auto"].loss != rows["mean"].loss
    # A, B and c of the pooler, which is not there any more
    assert counts["auto"] - counts["mean"] == 2 * 2 * 32 + 11
    assert not [layer for layer in rows["mean"].ranks if "pooler" in layer["layer"]]


def test_a_causal_task_has_no_pooling():
    with pytest.raises(InputError, match="pooling is of classification and regression, task 'words' is causal"):
        Task("words", kind="causal", pooling="mean")
