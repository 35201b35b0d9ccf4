"""Results in the shape of PEFT's method_comparison."""

import json

from peft_study.method_comparison import method_comparison_rows


def test_rows_in_the_shape_of_method_comparison(whole):
    study, _, rows = whole
    found = method_comparison_rows(study, rows)
    assert len(found) == 4
    for row, final in zip(found, [r for r in rows if r.phase == "final"], strict=True):
        assert set(row) == {"run_info", "train_info", "meta_info"}
        assert row["run_info"]["peft_config"]["r"] == 2
        assert row["train_info"]["num_trainable_params"] == final.trainable_parameters
        assert row["train_info"]["metrics"][-1]["test accuracy"] == final.value
        json.dumps(row, allow_nan=False)
