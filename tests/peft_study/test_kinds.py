"""The kind of a task: which one it is, and that its cells are known by what they were known by."""

from pathlib import Path

import pytest

from peft_study import read_study
from peft_study.commonsense import COMMONSENSE
from peft_study.facts import FACTS
from peft_study.held_out import HELD_OUT
from peft_study.images import CLASSIFIED_IMAGES
from peft_study.kinds import kind_of
from peft_study.plan import digests_of, open_cells
from peft_study.run import rows_of
from peft_study.spec import Task
from peft_study.store import read_rows

STUDIES = Path(__file__).parents[2] / "studies"
MIX = Task("mix", kind="causal", commonsense=("obqa",), commonsense_data="hub", how="generation")


@pytest.mark.parametrize(
    ("task", "kind", "packages"),
    [
        (Task("rte"), HELD_OUT, ()),
        (Task("texts", kind="causal"), HELD_OUT, ()),
        (Task("mix", commonsense=("obqa",)), COMMONSENSE, ("lm_eval",)),
        (MIX, COMMONSENSE, ()),
        (Task("held", kind="facts", facts=8), FACTS, ()),
        (Task("pets", kind="image-classification"), CLASSIFIED_IMAGES, ()),
        (Task("digits", data="embedded-digits"), CLASSIFIED_IMAGES, ()),
    ],
)
def test_every_task_has_a_kind_that_says_what_must_be_installed(task, kind, packages):
    assert kind_of(task) is kind
    assert kind.packages(task) == packages


def test_how_questions_are_asked_determines_the_result_and_not_the_search():
    search, final = (COMMONSENSE.settings(MIX, phase) for phase in ("search", "final"))
    assert final == {**search, "how": "generation", "prompt": "instruction"}
    # a field that comes later must be left out at its default, or no result that exists is found again
    assert set(search) == {
        "name", "task", "subset", "kind", "text_columns", "label_column", "max_length", "template", "epochs",
        "max_steps", "batch_size", "gradient_accumulation",
    }  # fmt: skip


def test_the_cells_of_a_committed_study_of_facts_are_found_again(monkeypatch):
    # the digest of the base as it was computed when the study ran
    monkeypatch.setattr("peft_study.plan.digest_of_model", lambda name: "91342f6730f3583f")
    study = read_study(STUDIES / "facts-encoder.yaml")
    rows = {row.fingerprint: row for row in read_rows(STUDIES / "results" / "facts-encoder" / "results.jsonl")}
    digests = digests_of(study)
    assert open_cells(study, digests, rows) == []
    assert len(rows_of(study, digests, rows)) == len(rows) == 247
