import json
import subprocess
import sys

import peft
import pytest
import torch
import transformers
from peft.tuners.lora import convert_to_lora
from safetensors.torch import load_file
from torch import nn

import lrlora
from lrlora import InputError
from lrlora.cli import main
from lrlora.export import RankChoice, export_lora, rank_pattern
from lrlora.tuner import deltas
from tests.conftest import disturb, tiny_bert
from tests.export.cases import Case, make, without_lrlora

NAMES = ("bert", "llama", "gpt2", "vit")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("cases")
    return {name: make(name, folder) for name in (*NAMES, "mixtral")}


def loaded(case: Case, adapter) -> peft.PeftModel:
    base = getattr(transformers, case.loader).from_pretrained(case.base, dtype=torch.float32, **case.options)
    return peft.PeftModel.from_pretrained(base, adapter).eval()


def updates(model) -> dict[str, torch.Tensor]:
    """dW of every adapted layer, as its own method gives it."""
    return {
        name.removeprefix("base_model.model."): layer.get_delta_weight("default")
        for name, layer in model.named_modules()
        if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer)
    }


def test_peft_alone_computes_what_the_adapted_model_computed(cases, tmp_path):
    exported = []
    for name in NAMES:
        made = export_lora(str(cases[name].adapter), tmp_path / name, RankChoice(energy=1.0))
        assert made.relative_error < 1e-6
        exported.append((cases[name], cases[name].base, tmp_path / name))
    found = without_lrlora(tmp_path, exported)
    for name in NAMES:
        torch.testing.assert_close(found[name], cases[name].logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "choice",
    [RankChoice(energy=0.6), RankChoice(rank=3), RankChoice(budget=6000), RankChoice(rank=3, uniform=True)],
    ids=lambda c: str(c),
)
def test_the_printed_error_is_that_of_the_adapter_that_peft_loads(cases, tmp_path, name, choice):
    case = cases[name]
    made = export_lora(str(case.adapter), tmp_path / "out", choice)
    was, became = updates(case.model), updates(loaded(case, tmp_path / "out"))
    assert list(was) == [row.layer for row in made.layers]
    assert set(was) == set(became)
    for row in made.layers:
        error = (was[row.layer] - became[row.layer]).norm() / was[row.layer].norm()
        assert row.relative_error == pytest.approx(error.item(), rel=1e-4, abs=1e-6)
    total = sum(((was[k] - became[k]) ** 2).sum() for k in was) / sum((was[k] ** 2).sum() for k in was)
    assert made.relative_error == pytest.approx(total.sqrt().item(), rel=1e-4)
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert made.parameters == sum(value.numel() for key, value in saved.items() if ".lora_" in key)
    if choice.budget:
        assert made.parameters <= choice.budget


def test_a_budget_loses_less_than_one_rank_for_all(cases, tmp_path):
    adapter = str(cases["bert"].adapter)
    flat = export_lora(adapter, tmp_path / "flat", RankChoice(rank=3))
    spent = export_lora(adapter, tmp_path / "spent", RankChoice(budget=flat.parameters))
    assert spent.parameters <= flat.parameters
    assert spent.relative_error < flat.relative_error
    assert len({row.rank for row in spent.layers}) > 1


def test_the_uniform_form_is_what_servers_take(cases, tmp_path):
    made = export_lora(str(cases["llama"].adapter), tmp_path / "out", RankChoice(rank=9, uniform=True))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 16)
    assert (config["rank_pattern"], config["alpha_pattern"], config["use_rslora"]) == ({}, {}, False)
    assert sorted(config["target_modules"]) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {value.shape[0] for key, value in tensors.items() if "lora_A" in key} == {16}
    assert made.layers[0].rank == 16
    # room that is paid for anyway is used: all 16 singular values of a 16-wide layer are there
    narrow = next(row for row in made.layers if min(row.shape) == 16)
    assert narrow.relative_error < 1e-6


def test_an_update_of_zero_loads_as_rank_1(tmp_path):
    base = tiny_bert()
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, lrlora.LRLoraConfig(r=2, target_modules=["query", "key"], task_type="SEQ_CLS"))
    disturb(model)
    still = deltas(model)[0][3]
    still.B.data.zero_()
    model.save_pretrained(tmp_path / "adapter")
    for number, choice in enumerate(
        (RankChoice(energy=0.5), RankChoice(budget=2000), RankChoice(rank=3, uniform=True))
    ):
        out = tmp_path / f"out{number}"
        made = export_lora(str(tmp_path / "adapter"), out, choice, model=str(tmp_path / "base"))
        assert made.layers[0].norm == 0 and made.layers[0].relative_error == 0
        assert made.layers[0].rank == (8 if choice.uniform else 1)
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
        first = next(iter(updates(peft.PeftModel.from_pretrained(again, out)).values()))
        assert not first.any()


def test_peft_s_own_conversion_agrees(cases):
    model = cases["llama"].model
    config, tensors = convert_to_lora(model, rank=4)
    was = updates(model)
    for name, dW in was.items():
        prefix = f"base_model.model.{name}"
        theirs = tensors[f"{prefix}.lora_B.weight"] @ tensors[f"{prefix}.lora_A.weight"]
        sigma = torch.linalg.svdvals(dW)
        assert (dW - theirs).norm().item() == pytest.approx((sigma[4:] ** 2).sum().sqrt().item(), rel=1e-3)
    assert (config.r, config.lora_alpha) == (4, 4)


@pytest.mark.parametrize("layer", [nn.Embedding(20, 8), nn.Conv1d(3, 8, 3), nn.Conv2d(3, 8, 3)], ids=str)
def test_peft_s_own_conversion_is_refused_where_its_names_or_shapes_would_be_wrong(layer):
    model = peft.get_peft_model(
        nn.Sequential(layer, nn.Linear(8, 4)), lrlora.LRLoraConfig(r=2, target_modules=["0", "1"])
    )
    with pytest.raises(TypeError, match=r"lrlora\.tuner\.types\.(Embedding|Conv)"):
        convert_to_lora(model, rank=2)


@pytest.mark.parametrize("choice", [RankChoice(energy=0.9), RankChoice(budget=5000)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_rank_pattern_makes_the_lora_that_an_export_would_be(cases, tmp_path, name, choice):
    case = cases[name]
    fields = rank_pattern(str(case.adapter), choice, file=tmp_path / "ranks.json")
    assert fields == json.loads((tmp_path / "ranks.json").read_text())
    base = getattr(transformers, case.loader).from_pretrained(case.base, **case.options)
    model = peft.get_peft_model(base, peft.LoraConfig(**fields))
    made = export_lora(str(case.adapter), tmp_path / "out", choice)
    fresh = {
        n.removeprefix("base_model.model."): m
        for n, m in model.named_modules()
        if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)
    }
    assert {name: m.r["default"] for name, m in fresh.items()} == {row.layer: row.rank for row in made.layers}
    # as in the run: alpha = 2 r
    assert {m.scaling["default"] for m in fresh.values()} == {2.0}
    assert made.parameters == sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)


def test_a_quantised_base_is_never_read(cases, tmp_path):
    case = cases["llama"]
    config = json.loads((case.base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "quantised").mkdir()
    (tmp_path / "quantised" / "config.json").write_text(json.dumps(config))
    made = export_lora(str(case.adapter), tmp_path / "out", RankChoice(rank=2), model=str(tmp_path / "quantised"))
    wanted = export_lora(str(case.adapter), tmp_path / "plain", RankChoice(rank=2))
    assert made.layers == wanted.layers


def test_experts_are_refused_by_name(cases, tmp_path):
    with pytest.raises(InputError, match=r"cannot export model.layers.0.mlp.experts.down_proj: .* use `lrlora merge`"):
        export_lora(str(cases["mixtral"].adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--energy", "0.9", "--rank", "4"], "got --energy and --rank, needed one of them at most"),
        (["--energy", "1.5"], "energy must be in (0, 1]"),
        (["--energy", "0"], "energy must be in (0, 1]"),
        (["--budget", "10"], "which is rank 1 in all 14 layers, got 10"),
        (["--rank", "600", "--uniform", "--energy", "0.5"], "got --energy and --rank"),
        (["--model", "./missing"], "./missing"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_status_2(cases, tmp_path, capsys, flags, word):
    capsys.readouterr()
    assert main(["export", str(cases["llama"].adapter), "--out", str(tmp_path / "out"), *flags]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1), err
    assert err.startswith("lrlora: ") and word in err
    assert list(tmp_path.iterdir()) == []


def test_the_commands_print_and_write(cases, tmp_path, capsys):
    adapter = str(cases["llama"].adapter)
    assert main(["export", adapter, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "model.layers.0.mlp.down_proj" in out and "relative error" in out
    assert main(["ranks", adapter, "--rank_pattern", str(tmp_path / "ranks.json"), "--rank", "3"]) == 0
    assert json.loads((tmp_path / "ranks.json").read_text())["r"] == 3
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert main(["export", adapter, "--out", str(tmp_path / "full")]) == 2


def test_an_export_that_is_interrupted_leaves_nothing(cases, tmp_path):
    code = (
        "import os, signal, sys; from lrlora.cli import main; from lrlora.export.lora import write\n"
        "def stop(*_): os.kill(os.getpid(), signal.SIGINT)\n"
        "write.copy_tokenizer = stop\n"
        "sys.exit(main(['export', sys.argv[1], '--out', sys.argv[2]]))"
    )
    command = [sys.executable, "-c", code, str(cases["llama"].adapter), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, list(tmp_path.iterdir())) == (130, [])
