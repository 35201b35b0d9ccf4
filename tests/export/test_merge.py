import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lrlora import InputError
from lrlora.cli import main
from lrlora.export import merge
from lrlora.export.base import INDEX, SINGLE, base_folder
from lrlora.export.merging import merge as merging
from lrlora.export.merging.rounding import rounding_warnings
from tests.conftest import rel_rms
from tests.export.cases import BUILDERS, Case, make, without_lrlora


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("cases")
    return {name: make(name, folder) for name in BUILDERS}


@pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias")
def test_transformers_alone_computes_what_the_adapted_model_computed(cases, tmp_path):
    said: list[str] = []
    merged = []
    for name, case in cases.items():
        out = tmp_path / name
        assert merge(str(case.adapter), out, say=said.append).was_streamed
        merged.append((case, out, None))
    assert said == []
    found = without_lrlora(tmp_path, merged)
    for name, case in cases.items():
        with case.model.disable_adapter(), torch.no_grad():
            base = case.model(**case.inputs).logits
        assert rel_rms(base, case.logits.double()) > 1e-3, name
        torch.testing.assert_close(
            found[name], case.logits, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name} {m}"
        )


@pytest.mark.parametrize("name", BUILDERS)
def test_the_weights_are_those_of_merge_and_unload(cases, tmp_path, name):
    case = cases[name]
    merge(str(case.adapter), tmp_path / "out")
    loaded = getattr(transformers, case.loader).from_pretrained(tmp_path / "out", dtype=torch.float32)
    wanted = peft.PeftModel.from_pretrained(
        getattr(transformers, case.loader).from_pretrained(case.base, dtype=torch.float32, **case.options), case.adapter
    ).merge_and_unload()  # pyright: ignore[reportCallIssue]
    wanted = dict(wanted.named_parameters())
    assert set(wanted) == {name for name, _ in loaded.named_parameters()}
    for key, value in loaded.named_parameters():
        assert torch.equal(value, wanted[key]), key


def test_the_shards_and_the_index_stay(cases, tmp_path):
    case = cases["llama"]
    merge(str(case.adapter), tmp_path / "out", dtype="bfloat16")
    before, after = (json.loads((folder / INDEX).read_text()) for folder in (case.base, tmp_path / "out"))
    assert len(set(before["weight_map"].values())) > 2
    assert after["weight_map"] == before["weight_map"]
    assert 2 * after["metadata"]["total_size"] == sum(
        value.numel() * value.element_size()
        for shard in set(before["weight_map"].values())
        for value in load_file(case.base / shard).values()
    )
    tensors = {k: v for s in set(after["weight_map"].values()) for k, v in load_file(tmp_path / "out" / s).items()}
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_rounding_loss_is_that_of_the_written_weights(tmp_path):
    case = make("llama", tmp_path, lora_alpha=0.1)
    assert {row.rounding_loss for row in merge(str(case.adapter), tmp_path / "exact").layers} == {0.0}
    made = merge(str(case.adapter), tmp_path / "rounded", dtype="bfloat16")
    exact, rounded = (
        {k: v for f in (tmp_path / folder).glob("*.safetensors") for k, v in load_file(f).items()}
        for folder in ("exact", "rounded")
    )
    for row in made.layers:
        key = f"{row.layer}.weight"
        lost = (rounded[key].float() - exact[key]).norm().item() / row.norm
        assert row.rounding_loss == pytest.approx(lost, rel=1e-4)
        assert row.rounding_loss > 0.01
    [warning] = rounding_warnings(made.layers)
    assert f"more than 1 % of dW in {len(made.layers)} of {len(made.layers)} layers" in warning


def test_a_new_head_makes_a_checkpoint_of_the_task(tmp_path):
    case = make("bert", tmp_path)
    (case.adapter / "labels.json").write_text(json.dumps(["yes", "no", "maybe"]))
    made = merge(str(case.adapter), tmp_path / "out")
    assert made.architecture == "BertForSequenceClassification"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "yes", "1": "no", "2": "maybe"}
    keys = set(load_file(tmp_path / "out" / SINGLE))
    assert "encoder.layer.0.attention.self.query.weight" in load_file(case.base / SINGLE)
    assert {"bert.encoder.layer.0.attention.self.query.weight", "classifier.weight", "classifier.bias"} <= keys
    assert not [key for key in keys if key.startswith(("encoder.", "embeddings."))]


def test_the_head_of_another_task_is_left_out_and_said(tmp_path):
    case = make("bert", tmp_path)
    tensors = {f"bert.{key}": value for key, value in load_file(case.base / SINGLE).items()}
    tensors["cls.predictions.bias"] = torch.ones(64)
    save_file(tensors, case.base / SINGLE, metadata={"format": "pt"})
    said: list[str] = []
    merge(str(case.adapter), tmp_path / "out", say=said.append)
    assert said == ["left out what BertForSequenceClassification has no place for: cls.predictions.bias (1 in all)"]
    assert "cls.predictions.bias" not in load_file(tmp_path / "out" / SINGLE)


def test_old_names_are_merged_and_a_weight_that_is_nowhere_is_refused(tmp_path, capsys):
    case = make("bert", tmp_path)
    tensors = load_file(case.base / SINGLE)
    # as old BERT checkpoints name them: transformers renames them while it loads
    renamed = {key.replace("LayerNorm.weight", "LayerNorm.gamma"): value for key, value in tensors.items()}
    renamed = {key.replace("LayerNorm.bias", "LayerNorm.beta"): value for key, value in renamed.items()}
    save_file(renamed, case.base / SINGLE, metadata={"format": "pt"})
    assert merge(str(case.adapter), tmp_path / "legacy").was_streamed
    # and a name that no one knows: the weight in its place would be random
    odd = {key.replace("layer.1.attention.self.query.weight", "odd"): value for key, value in tensors.items()}
    save_file(odd, case.base / SINGLE, metadata={"format": "pt"})
    for command in (["merge", str(case.adapter), "--out", str(tmp_path / "odd")], ["ranks", str(case.adapter)]):
        assert main([*command, "--model", str(case.base)]) == 2
        said = capsys.readouterr().err
        assert "holds bert.encoder.layer.1.attention.self.query.weight (1 such tensors): it is random" in said
    assert not (tmp_path / "odd").exists()


def test_names_that_cannot_be_matched_are_merged_in_memory_and_said(cases, tmp_path, monkeypatch):
    case, said = cases["llama"], []
    merge(str(case.adapter), tmp_path / "streamed")
    monkeypatch.setattr(merging, "match", lambda *_: "no tensor of its files is q_proj")
    assert not merge(str(case.adapter), tmp_path / "loaded", say=said.append).was_streamed
    assert said == [
        f"{case.base}: no tensor of its files is q_proj; merging the loaded model instead, which needs all of it in "
        "memory"
    ]
    streamed, loaded = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("streamed", "loaded")
    )
    for key, value in streamed.items():
        assert torch.equal(value, loaded[key]), key


def test_a_hub_name_is_found_in_the_hub_s_cache(cases, tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
    shutil.copytree(cases["llama"].base, snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert base_folder("some/model") == snapshot
    with pytest.raises(InputError, match="'other/model' is neither a model folder nor a readable model of the hub"):
        base_folder("other/model")


def test_the_command_prints_every_layer_and_warns(tmp_path, capsys):
    case = make("llama", tmp_path, lora_alpha=0.1)
    capsys.readouterr()
    assert main(["merge", str(case.adapter), "--out", str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    out, err = capsys.readouterr()
    assert "model.layers.1.mlp.down_proj" in out and "LlamaForCausalLM" in out
    assert "warning: rounding to bfloat16 loses more than 1 % of dW in 14 of 14 layers" in err
    assert main(["merge", str(case.adapter), "--out", str(tmp_path / "json"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 14
