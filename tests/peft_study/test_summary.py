"""Means, intervals and paired differences of a study, and the sentences that answer its questions."""

import pytest

from peft_study.answers import answers, summary_lines
from peft_study.plan import (
    is_at_the_edge,
)
from peft_study.summary import summary
from tests.peft_study.conftest import a_row


def test_the_summary_pairs_arms_over_seeds(whole):
    study, _, rows = whole
    lora, ours = summary(rows, study.reference_arm())
    values = {arm: [r.value for r in rows if (r.arm, r.phase) == (arm, "final")] for arm in ("lora", "ours")}
    assert lora.difference is None
    assert lora.test is not None
    assert (lora.test.n, lora.test.mean) == (2, sum(values["lora"]) / 2)
    assert ours.difference is not None
    assert ours.difference.mean == pytest.approx((sum(values["ours"]) - sum(values["lora"])) / 2)
    assert (lora.failed, lora.ranks) == (0, None)
    assert ours.ranks is not None and ours.ranks.seeds == 2
    ranks = [r.ranks for r in rows if (r.arm, r.phase) == ("ours", "final")]
    means = [sum(layer["stable_rank"] for layer in of_seed) / len(of_seed) for of_seed in ranks]
    assert ours.ranks.stable_rank.mean == pytest.approx(sum(means) / 2)
    question, answer = answers([lora, ours], "lora")[0]
    assert question == "words: Does an arm differ from lora in accuracy?"
    assert "ours" in answer
    assert is_at_the_edge((1.0, 2.0, 3.0), 3.0) and not is_at_the_edge((1.0, 2.0, 3.0), 2.0)


def test_a_summary_keeps_to_bounds_and_to_the_smallest_effect():
    def row(arm, seed, value, loss):
        adapter = {"r": 32, "lora_alpha": 16 if arm == "lora" else None}
        named = {"arm": arm, "method": arm, "seed": seed, "metric": "accuracy"}
        return a_row(**named, value=value, loss=loss, wall_s=1.0, adapter=adapter)

    low = [0.02, 0.10, 0.30]
    rows = [row("lora", n, v, 0.5) for n, v in enumerate(low)]
    rows += [row("ours", n, v + 0.001 + n * 1e-5, 0.1) for n, v in enumerate(low)]
    found = summary(rows, "lora")
    assert found[0].test is not None and (found[0].test.low, found[0].test.n) == (0.0, 3)
    (_, answer), *_ = answers(found, "lora")
    assert answer.startswith("no difference is shown, of 1 compared; the largest is ours, +0.0010 [")
    assert "; smaller than 0.002, the smallest effect of interest: ours, +0.0010 [" in answer
    assert answers(summary(rows, "lora", smallest_effect=0.0005), "lora")[0][1].startswith("shown for 1 of 1: ours")
    assert any("at r = 32 the arms have different scales s: 0.5 (lora); 2 (ours)" in x for x in summary_lines(found))
