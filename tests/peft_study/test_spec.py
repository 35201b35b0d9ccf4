import dataclasses
import json
from pathlib import Path

import pytest

from lrlora import InputError
from lrlora.cli.main import main
from peft_study import read_study
from peft_study.arms import adapted, adapter_config
from peft_study.cell import settings_of
from peft_study.estimate import Sizes, estimates
from peft_study.methods import METHODS
from peft_study.plan import digests_of, open_cells, with_root
from peft_study.run import rows_of
from peft_study.scales import Scale, scale_lines, scale_of
from peft_study.spec import Arm, Study, Task
from peft_study.store import read_rows
from peft_study.summary import as_dict, summary
from tests.conftest import BENCHMARK_DATA, tiny_bert, write_rows

STUDIES = Path(__file__).parents[2] / "studies"
SOME = ("full", "lora", "vera", "lrlora-sinc")
GOOD = """\
study: mine
learning_rates: [1e-3, 2e-3]
seeds: [0, 1, 2]
tasks:
  - {name: rte, data: glue}
arms:
  - {name: lora, method: lora, r: 4}
  - name: ours
    method: lrlora
    tau: auto
    learning_rates: [5e-4, 1e-3]
"""


def refused(tmp_path, text: str) -> str:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_study(file)
    return str(caught.value)


def test_a_study_is_read(tmp_path):
    (tmp_path / "study.yaml").write_text(GOOD)
    study = read_study(tmp_path / "study.yaml")
    assert study.learning_rates == (1e-3, 2e-3)
    assert study.rates_of(study.arms[1]) == (5e-4, 1e-3)
    assert study.arms[0].fields == {"r": 4}
    assert study.reference_arm() == "lora"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("study: mine", "study: mine\nlerning_rate: 3", "line 2: unknown key 'lerning_rate' in the study"),
        ("data: glue}", "data: glue, row: 3}", "line 5: unknown key 'row' in task 'rte'"),
        ("r: 4}", "rank: 4}", "line 7: arm 'lora': unknown field 'rank'"),
        ("r: 4}", "r: 4, target_modules: [query]}", "target_modules is the same for every arm"),
        ("method: lora,", "method: lorra,", "no method 'lorra'"),
        ("tau: auto", "tau: never", "line 10: arm 'ours': tau must be a number or 'auto', got 'never'"),
        ("tau: auto", "tau: auto\n    tau: 0.1", "line 11: 'tau' stands twice"),
        ("[5e-4, 1e-3]", "[5e-4]", "arm 'ours' has 1 learning rates and the study 2: every arm gets the same budget"),
        ("[5e-4, 1e-3]", "[5e-4, 5e-4]", "twice"),
        ("[5e-4, 1e-3]", "[5e-4, -1]", "must be above 0"),
        ("seeds: [0, 1, 2]", "seeds: [0, one]", "line 3: 'seeds' of the study must be a whole number, got 'one'"),
        ("seeds: [0, 1, 2]\n", "", "the study needs the key 'seeds'"),
        ("name: ours", "name: lora", "arms holds 'lora' twice"),
        ("data: glue}", "data: glue, batch_size: 0}", "batch_size must be at least 1, got 0"),
        ("    tau: auto", "    c_lr_factor: 0", "c_lr_factor must be above 0"),
        ("r: 4}", "r: 4, c_lr_factor: 2}", "c_lr_factor is for method lrlora"),
        ("study: mine", "study: [", "is not YAML"),
        # types, read off the config of every method
        ("r: 4}", 'r: "8"}', "line 7: arm 'lora': r must be a whole number, got '8'; write it without quotes"),
        ("r: 4}", "r: 8.5}", "line 7: arm 'lora': r must be a whole number, got 8.5"),
        ("r: 4}", "r: 8.0}", "r must be a whole number, got 8.0; write 8"),
        ("r: 4}", "r: true}", "r must be a whole number, got True"),
        ("r: 4}", "r: 0}", "line 7: arm 'lora': r must be at least 1, got 0"),
        ("r: 4}", "lora_alpha: abc}", "lora_alpha must be a whole number, got 'abc'"),
        ("r: 4}", 'use_rslora: "no"}', "use_rslora must be true or false, got 'no'; write true or false"),
        ("r: 4}", "use_dora: 1}", "use_dora must be true or false, got 1"),
        ("r: 4}", "lora_dropout: yes}", "lora_dropout must be a number, got True"),
        ("r: 4}", "lora_dropout: .nan}", "lora_dropout must be a number, got nan; it must be finite"),
        ("r: 4}", "lora_dropout: 1.5}", "lora_dropout must be in [0, 1), got 1.5"),
        ("r: 4}", "init_lora_weights: pisa}", "init_lora_weights must be true or false or one of 'gaussian'"),
        ("r: 4}", "rank_pattern: 4}", "rank_pattern must be a mapping, got 4"),
        ("r: 4}", "rank_pattern: {query: [4, 8]}}", "rank_pattern['query'] must be a whole number, got [4, 8]"),
        ("r: 4}", "eva_config: {rho: 2.0}}", "eva_config must be a EvaConfig, which a study file cannot hold"),
        ("lora, r: 4}", 'vera, d_initial: "0.1"}', "line 7: arm 'lora': d_initial must be a number, got '0.1'"),
        ("lora, r: 4}", "fourierft, n_frequency: many}", "n_frequency must be a whole number, got 'many'"),
        ("lora, r: 4}", "hira, rank_pattern: [1]}", "line 7: arm 'lora-rank_pattern1': rank_pattern must be a mapping"),
        ("lora, r: 4}", "peanut, act_fn: 3}", "act_fn must be a text, got 3"),
        ("lora, r: 4}", "adalora, r: 4}", "r has no effect in method adalora; its ranks are init_r and target_r"),
        ("lora, r: 4}", "rslora, use_rslora: false}", "use_rslora is True in method rslora, got False"),
        ("tau: auto", "tau: {a: 1}", "line 10: arm 'ours': tau must be a number or 'auto', got {'a': 1}"),
        ("tau: auto", "share: all", "line 10: arm 'ours': share must be one of 'matrix', "),
        # what was meant
        ("r: 4}", "lora_alhpa: 4}", "unknown field 'lora_alhpa'; did you mean 'lora_alpha'?"),
        ("learning_rates: [1e-3, 2e-3]", "learning_rate: [1e-3, 2e-3]", "did you mean 'learning_rates'?"),
        (
            "data: glue}",
            "data: glue, batchsize: 3}",
            "line 5: unknown key 'batchsize' in task 'rte'; did you mean 'batch_",
        ),
        ("method: lora,", "method: rs_lora,", "no method 'rs_lora'; did you mean 'rslora'?"),
        ("\ntasks:", "\ntask:", "the study needs 'tasks', a list; it has 'task': did you mean 'tasks'?"),
        (
            "seeds: [0, 1, 2]",
            "seeds: 3",
            "line 3: 'seeds' of the study must be a list, each a whole number, got 3; write",
        ),
        (
            "[1e-3, 2e-3]",
            "1e-3",
            "line 2: 'learning_rates' of the study must be a list, each a number, got 0.001; write",
        ),
        ("[1e-3, 2e-3]", '["1e-3", 2e-3]', "must be a number, got '1e-3'; write it without quotes"),
        ("[1e-3, 2e-3]", "[1e-3, .inf]", "line 2: 'learning_rates' of the study must be a number, got inf"),
        ("seeds: [0, 1, 2]", "seeds: [0, -1]", "seeds must be in [0, 2^32), got -1"),
        (
            "data: glue}",
            "data: glue, max_steps: 1e3}",
            "'max_steps' of task 'rte' must be a whole number, got 1000.0; write 1000",
        ),
        ("study: mine", "study: no", "line 1: 'study' of the study must be a text, got False; put it into quotes"),
        ("study: mine", "study: mine\nseeds: [7]", "line 4: 'seeds' stands twice"),
        ("study: mine", "study: mine\nreference: lroa", "reference 'lroa' is none of the arms: lora, ours"),
        ("study: mine", "study: mine\nsmallest_effect: -1", "smallest_effect must be at least 0, got -1"),
        # grids
        ("method: lora, r: 4}", "method: [lora, dora], r: 4}", "line 7: "),
        ("{name: lora,", "{name: [a, b],", "line 7: "),
        ("r: 4}", "r: []}", "line 7: 'r' of arm 'lora' is an empty list"),
        ("r: 4}", "r: [4, 4]}", "line 7: arms holds 'lora-r4' twice, first at "),
        (
            "name: ours",
            "name: lora-r8\n  - {name: lora, method: lora, r: [4, 8]}\n  - name: ours",
            "needs the key 'method'",
        ),
        ("r: 4}", 'r: [4, "8"]}', "line 7: arm 'lora-r-8': r must be a whole number, got '8'"),
        ("r: 4}", "r: [[4], 8]}", "the name of an arm must be of letters, digits"),
        ("r: 4}", "target_modules: [query], r: [4, 8]}", "target_modules is the same for every arm"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_line(tmp_path, old, new, said):
    assert old in GOOD
    message = refused(tmp_path, GOOD.replace(old, new))
    assert said in message
    assert "study.yaml" in message


def test_a_list_in_an_arm_is_a_grid_of_arms(tmp_path):
    grid = "r: [2, 4], lora_alpha: [8, 16], use_rslora: [false, true], alora_invocation_tokens: [1, 2]}"
    text = GOOD.replace("r: 4}", grid).replace("tau: auto", "tau: [auto, 0.02]\n    c_lr_factor: [1, 50]")
    (tmp_path / "study.yaml").write_text(text)
    study = read_study(tmp_path / "study.yaml")
    assert [arm.name for arm in study.arms] == [
        *(f"lora-r{r}-lora_alpha{a}-use_rslora-{rs}" for r in (2, 4) for a in (8, 16) for rs in ("false", "true")),
        *(f"ours-tau{tau}-c_lr_factor{c}" for tau in ("-auto", "0.02") for c in (1, 50)),
    ]
    # a field that takes a list keeps it; every arm of a grid has the budget of the whole
    assert study.arms[3].fields == {"r": 2, "lora_alpha": 16, "use_rslora": True, "alora_invocation_tokens": [1, 2]}
    assert [arm.c_lr_factor for arm in study.arms[-2:]] == [1.0, 50.0]
    assert {study.rates_of(arm) for arm in study.arms[-4:]} == {(5e-4, 1e-3)}
    assert study.reference_arm() == study.arms[0].name


def test_an_arm_of_a_grid_that_has_the_name_of_another_is_refused(tmp_path):
    text = GOOD.replace("r: 4}", "r: [4, 8]}").replace("name: ours", "name: lora-r8")
    assert "line 8: arms holds 'lora-r8' twice, first at" in refused(tmp_path, text)
    assert "line 7" in refused(tmp_path, text)


def test_types_that_peft_reads_generously_are_taken(tmp_path):
    good = (
        "init_lora_weights: pissa_niter_16, lora_dropout: 0, rank_pattern: {query: 2}, loftq_config: {loftq_bits: 4}}"
    )
    (tmp_path / "study.yaml").write_text(GOOD.replace("r: 4}", good))
    assert read_study(tmp_path / "study.yaml").arms[0].fields["init_lora_weights"] == "pissa_niter_16"


@pytest.mark.parametrize(
    ("arm", "s"),
    [
        (Arm("a", "lora", {"r": 32}), 2.0),
        (Arm("a", "lora"), 2.0),
        (Arm("a", "lora", {"r": 32, "lora_alpha": 16}), 0.5),
        (Arm("a", "dora", {"r": 3}), 2.0),
        (Arm("a", "rslora", {"r": 16}), 8.0),
        (Arm("a", "lora", {"r": 16, "use_rslora": True}), 8.0),
        (Arm("a", "adalora", {"init_r": 6, "target_r": 2}), 2.0),
        (Arm("a", "randlora", {"r": 4}), 20.0),
        (Arm("a", "loha", {"r": 16}), 2.0),
        (Arm("a", "sine", {"r": 32}), 2.0),
        (Arm("a", "lrlora", {"r": 32}), 2.0),
        (Arm("a", "lrlora", {"r": 32, "lora_alpha": 8}), 0.25),
        *((Arm("a", method), None) for method in ("full", "hira", "vera", "fourierft", "peanut")),
    ],
    ids=lambda value: f"{value.method}-{value.fields}" if isinstance(value, Arm) else "",
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_scale_of_an_arm_is_that_of_its_layers(arm, s):
    study = Study("it", (arm,), (Task("t"),), (1e-3,), (0,))
    config = adapter_config(study, arm, "SEQ_CLS", 100)
    found = scale_of(config and config.to_dict())
    assert (found and found.s) == (None if s is None else pytest.approx(s))
    if s is None:
        return
    layers = [m for m in adapted(tiny_bert(2), config).modules() if isinstance(getattr(m, "scaling", None), dict)]
    assert len(layers) == 13
    # AdaLoRA keeps alpha, and divides by its rank in the forward pass
    divided = config.init_r if arm.method == "adalora" else 1
    assert [float(layer.scaling["default"]) / divided for layer in layers] == pytest.approx([s] * 13)


def test_arms_of_other_scales_at_one_rank_are_named():
    scales = [("lora", Scale(32, 0.5)), ("ours", Scale(32, 2.0)), ("more", Scale(8, 4.0)), ("hira", None)]
    (line,) = scale_lines([*scales, *scales])
    assert line.startswith("at r = 32 the arms have different scales s: 0.5 (lora); 2 (ours); ")
    assert scale_lines([("a", Scale(8, 2.0)), ("b", Scale(8, 2.0)), ("c", Scale(4, 1.0))]) == []


@pytest.mark.parametrize("name", sorted(folder.name for folder in (STUDIES / "results").iterdir()))
def test_committed_studies_resolve_to_what_they_ran_with(name):
    study = read_study(STUDIES / f"{name}.yaml")
    rows = read_rows(STUDIES / "results" / name / "results.jsonl")
    for arm in study.arms:
        mine = next(row for row in rows if row.arm == arm.name)
        # the head of an encoder stays as it is drawn where facts are counted, so that PEFT is told of no task
        kind = {"commonsense-small": "CAUSAL_LM", "facts-pairs": "CAUSAL_LM", "facts-encoder": None}.get(
            name, "SEQ_CLS"
        )
        resolved = settings_of(adapter_config(study, arm, kind, 100))
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


def test_a_dry_run_reads_classes_and_rows_where_the_data_are(tmp_path, capsys):
    config = "{model_type: bert, vocab_size: 64, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2}"
    head = GOOD.replace("data: glue}", f"data: {tmp_path}, kind: classification, train_rows: 900, validation_rows: 6}}")
    (tmp_path / "study.yaml").write_text(f"{head}model_config: {config}\n")
    rows = [{"sentence1": "a", "sentence2": f"{n}", "label": n % 5} for n in range(30)]
    write_rows(tmp_path / "rte_train.jsonl", rows)
    write_rows(tmp_path / "rte_dev.jsonl", rows)
    lora = estimates(read_study(tmp_path / "study.yaml"))[0]
    assert lora.sizes == Sizes(train_rows=24, classes=5, is_assumed=False)
    assert lora.steps == 4  # two epochs of two batches
    assert main(["study", str(tmp_path / "study.yaml"), "--dry_run"]) == 0
    shown = capsys.readouterr()
    assert "rte: ESTIMATES, nothing was run; 24 rows to train on, 5 classes" in " ".join(shown.out.split())
    assert "warning: rte: train_rows asks for 900, and there are 24\n" in shown.err
    # the head of five classes is counted: 33 numbers each
    (tmp_path / "study.yaml").write_text(f"{GOOD}model_config: {config}\n")
    other = estimates(read_study(tmp_path / "study.yaml"))[0]
    assert lora.total_parameters - other.total_parameters == 2 * 3 * 33
    assert other.sizes == Sizes(train_rows=2241, classes=2, is_assumed=True)
    assert main(["study", str(tmp_path / "study.yaml"), "--dry_run"]) == 0
    shown = capsys.readouterr()
    assert "2 classes (assumed: the data are not here)" in " ".join(shown.out.split())


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


@pytest.mark.parametrize("file", sorted(STUDIES.glob("full-*.yaml")), ids=lambda f: f.stem)
def test_a_dry_run_of_the_full_recipes_needs_neither_weights_nor_hub(file):
    study = read_study(file)
    assert {arm.method for arm in study.arms} == set(METHODS)
    # every arm of one recipe, four of the others: building them takes a while
    arms = study.arms if "roberta-base" in file.stem else [a for a in study.arms if a.name in SOME]
    found = estimates(dataclasses.replace(study, tasks=study.tasks[:1], arms=tuple(arms)))
    by_arm = {each.arm: each for each in found}
    lora, full = by_arm["lora"], by_arm["full"]
    assert full.trainable_parameters == full.total_parameters > 50 * lora.trainable_parameters
    # c: 10 numbers per layer and the middle one that has no effect
    extra = by_arm["lrlora-sinc"].trainable_parameters - lora.trainable_parameters
    assert 0 < extra < 11 * 300
    assert extra % 11 == 0
    assert all(each.hours_of_a_cell and each.memory_bytes > 4 * each.total_parameters for each in found)
    assert by_arm["vera"].shown()[-1] == "not measured"
    assert by_arm["vera"].shown()[-3].startswith("> ")


def test_a_dry_run_that_cannot_know_the_model_says_what_to_give(tmp_path):
    (tmp_path / "study.yaml").write_text(GOOD + "model: nobody/nothing\n")
    with pytest.raises(InputError, match="give the study a model_config"):
        estimates(read_study(tmp_path / "study.yaml"))
