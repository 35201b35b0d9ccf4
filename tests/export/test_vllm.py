"""What vLLM would reject is named, by the rules of its loader; vLLM itself is not here."""

import json
import re

import pytest

from lrlora.export import RankChoice, export_lora
from lrlora.export.lora.vllm import why_vllm_refuses
from tests.export.cases import make

PLAIN = {"r": 16, "bias": "none", "rank_pattern": {"q_proj": 8}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, None),
        ({"r": 17}, "rank 17 is above its default max_lora_rank 16: start it with --max-lora-rank 32"),
        ({"rank_pattern": {"q_proj": 200}}, "rank 200 .* --max-lora-rank 256"),
        ({"r": 600}, "rank 600 is above 512, the most it takes: pass a lower --energy"),
        ({"modules_to_save": ["lm_head"]}, r"it refuses modules_to_save \(lm_head\): lrlora merge"),
        ({"modules_to_save": ["score"]}, r"versions of vLLM .* refuse modules_to_save \(score\)"),
        ({"bias": "lora_only"}, "it refuses trained biases .*--bias none"),
        ({"use_dora": True}, "it has no DoRA"),
        ({"trainable_token_indices": [3]}, "it refuses trained tokens"),
    ],
)  # fmt: skip
def test_every_rule_has_a_sentence(fields, said):
    found = why_vllm_refuses({**PLAIN, **fields}, {"base_model.model.a.q_proj.lora_A.weight": (8, 4)})
    assert len(found) == (said is not None)
    if said is not None:
        assert re.search(said, found[0]), found[0]


def test_tensors_that_its_parser_does_not_know():
    taken = ["a.lora_A.weight", "a.lora_B.weight", "a.lora_embedding_A", "a.embed_tokens.base_layer.weight"]
    assert why_vllm_refuses(PLAIN, {f"base_model.model.{name}": (8, 4) for name in taken}) == []
    (found,) = why_vllm_refuses(PLAIN, {"base_model.model.wte.weight": (8, 4)})
    assert "no tensor such as base_model.model.wte.weight (1 in all)" in found
    (found,) = why_vllm_refuses(PLAIN, {"base_model.model.conv.lora_A.weight": (8, 4, 3, 3)})
    assert "not convolutions (base_model.model.conv.lora_A.weight)" in found


@pytest.mark.parametrize(
    ("name", "rank", "said"),
    [
        ("llama", 8, None),
        ("llama", 20, "rank 20 is above its default max_lora_rank 16: start it with --max-lora-rank 32"),
        ("bert", 8, "refuses trained biases"),
        # an image classifier, which vLLM does not serve
        ("vit", 8, None),
    ],
)
def test_an_export_says_it_in_one_line(tmp_path, name, rank, said):
    case = make(name, tmp_path)
    lines: list[str] = []
    export_lora(str(case.adapter), tmp_path / "out", RankChoice(rank=rank), say=lines.append)
    found = [line for line in lines if line.startswith("vLLM would not load this LoRA as it is: ")]
    assert len(found) == (said is not None) and all(said in line for line in found), lines
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] and config["alpha_pattern"] == config["rank_pattern"]
