"""A study, and the studies of this project: they can be read, and their cells are found again."""

import json
from pathlib import Path

import pytest

from lrlora import InputError
from peft_study import read_study
from peft_study.arms import adapter_config
from peft_study.cell import settings_of
from peft_study.methods import METHODS
from peft_study.plan import digests_of, open_cells, with_root
from peft_study.run import rows_of
from peft_study.store import read_rows
from peft_study.summary import as_dict, summary
from tests.conftest import BENCHMARK_DATA
from tests.peft_study.conftest import GOOD

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.mark.parametrize("name", sorted(folder.name for folder in (STUDIES / "results").iterdir()))
def test_committed_studies_resolve_to_what_they_ran_with(name):
    study = read_study(STUDIES / f"{name}.yaml")
    rows = read_rows(STUDIES / "results" / name / "results.jsonl")
    # PEFT is told of no task where the head stays as it is drawn (facts), and has none for images
    is_headless = study.tasks[0].kind in ("facts", "image-classification")
    peft_task = "CAUSAL_LM" if study.model == "embedded-decoder" else None if is_headless else "SEQ_CLS"
    for arm in study.arms:
        mine = next(row for row in rows if row.arm == arm.name)
        resolved = settings_of(adapter_config(study, arm, peft_task, 100))
        # PEFT writes the names of this model's modules into the first two; by its version an adapter holds c itself or
        # theta, which Adam moves c alike with
        placed = ("target_modules", "modules_to_save", "config_version")
        # a field that came later must be without effect
        defaults = settings_of(METHODS[arm.method].config())
        # without a carrier, where it would start has no effect, and its default has changed
        unused = {"carrier_start"} if resolved.get("carrier") == "none" else set()
        for key in resolved.keys() - placed - unused:
            assert resolved[key] == mine.adapter.get(key, defaults[key]), (arm.name, key)
    # and their summaries are what the code makes of their rows
    made = as_dict(study, rows, summary(rows, study.reference_arm(), study.smallest_effect))
    assert json.loads(json.dumps(made)) == json.loads((STUDIES / "results" / name / "summary.json").read_text())


@pytest.mark.skipif(not (BENCHMARK_DATA / "glue").exists(), reason="needs the rows of SST-2: set LRLORA_DATA")
def test_the_cells_of_a_committed_study_are_found_again(monkeypatch):
    # the digest of the base as it was computed when the study ran
    monkeypatch.setattr("peft_study.plan.digest_of_model", lambda name: "6892cfbbe598fa98")
    study = with_root(read_study(STUDIES / "sharing.yaml"), str(BENCHMARK_DATA / "glue"))
    rows = {row.fingerprint: row for row in read_rows(STUDIES / "results" / "sharing" / "results.jsonl")}
    digests = digests_of(study)
    assert open_cells(study, digests, rows) == []
    assert len(rows_of(study, digests, rows)) == len(rows) == 42


def test_data_must_be_named_somewhere(tmp_path):
    (tmp_path / "study.yaml").write_text(GOOD.replace(", data: glue", ""))
    study = read_study(tmp_path / "study.yaml")
    with pytest.raises(InputError, match="--data_root FOLDER"):
        study.data_of(study.tasks[0])
    assert with_root(study, str(tmp_path)).data_of(study.tasks[0]) == str(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        with_root(study, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda f: f.stem)
def test_the_studies_of_this_project_can_be_read(file):
    study = read_study(file)
    assert file.stem == study.study
    assert {len(study.rates_of(arm)) for arm in study.arms} == {len(study.learning_rates)}
    assert len(study.seeds) >= 3
    was_not_run = file.stem.startswith("full-")
    assert ("NOT RUN" in file.read_text()) == ("not run" in study.note) == was_not_run
