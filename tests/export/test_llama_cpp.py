"""What llama.cpp would compute otherwise is named, by the rules of its converter and loader."""

import re

import pytest

from lrlora.export import RankChoice, export_lora
from lrlora.export.lora.llama_cpp import said_of_llama_cpp, why_llama_cpp_differs
from tests.export.cases import make

PLAIN = {"r": 16, "lora_alpha": 16, "bias": "none", "rank_pattern": {}, "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, None),
        ({"rank_pattern": {"q_proj": 4}}, r"here by up to 4 \(ranks 4 to 16\), in silence: pass --uniform"),
        ({"bias": "lora_only"}, "refuses trained biases"),
        ({"modules_to_save": ["lm_head"]}, r"refuses modules_to_save \(lm_head\)"),
        ({"trainable_token_indices": [3]}, "refuses trained tokens"),
    ],
)
def test_every_rule_has_a_sentence(fields, said):
    found = why_llama_cpp_differs({**PLAIN, **fields})
    assert len(found) == (said is not None)
    if said is not None:
        assert re.search(said, found[0]), found[0]
        assert said_of_llama_cpp({**PLAIN, **fields, "task_type": "SEQ_CLS"}) is None


def test_an_export_with_ranks_of_each_layer_says_it_and_a_uniform_one_does_not(tmp_path):
    case = make("llama", tmp_path)
    for is_uniform, choice in ((False, RankChoice(budget=1500)), (True, RankChoice(rank=2, uniform=True))):
        lines: list[str] = []
        export_lora(str(case.adapter), tmp_path / f"out{is_uniform}", choice, say=lines.append)
        assert any(line.startswith("llama.cpp would not compute") for line in lines) is not is_uniform, lines
