"""A study file: what is read, and what is refused by name and line."""

from __future__ import annotations

import pytest

from lrlora import InputError
from peft_study import read_study
from tests.peft_study.conftest import GOOD


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
        ("tau: auto", "tau: auto\n    tau: 0.1", "line 11: 'tau' occurs twice"),
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
        ("study: mine", "study: mine\nseeds: [7]", "line 4: 'seeds' occurs twice"),
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


def test_a_study_file_of_facts(tmp_path):
    file = tmp_path / "study.yaml"
    text = "study: held\nlearning_rates: [1e-3]\nseeds: [0]\nblocks: 2\nwiden: 1\n"
    text += "tasks:\n  - {name: d, kind: facts, TASK}\narms:\n  - {name: lora, method: lora}\n"
    file.write_text(text.replace("TASK", "facts: 50, values: 8"))
    study = read_study(file)
    assert (study.blocks, study.widen, study.tasks[0].facts, study.tasks[0].values) == (2, 1, 50, 8)
    for bad, said in (
        ("facts: ten", "line 7: 'facts' of task 'd' must be a whole number"),
        ("fact: 1", "did you mean"),
    ):
        file.write_text(text.replace("TASK", bad))
        with pytest.raises(InputError, match=said):
            read_study(file)
    file.write_text(text.replace("TASK", "facts: 50").replace("blocks: 2", "blocks: 0"))
    with pytest.raises(InputError, match="blocks must be at least 1, got 0"):
        read_study(file)
