"""Models and pipelines of diffusers: everything they do with adapters, and files that come back the same."""

import pytest
import torch
from peft import get_peft_model_state_dict

from lrlora import InputError, LRLoraConfig, deltas, param_groups
from lrlora.tuner.diffusers import WEIGHT_NAME, load_lora_adapter
from tests.conftest import disturb
from tests.tuner.diffusion import flux, inputs_of, pipeline_of, says, unet

pytest.importorskip("diffusers", reason="diffusers is not installed")
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
    "ignore:.*torchvision:UserWarning",
    # peft's own, of every second adapter
    "ignore:Already found a .peft_config. attribute:UserWarning",
)
MODELS = {"unet": unet, "transformer": flux}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
FIELDS = {
    "attention": {},
    "all": {"target_modules": "all-linear", "carrier": "signs", "share": "type"},
    "patterns": {"rank_pattern": {"to_k": 3}, "alpha_pattern": {"to_q": 2.0}, "phi": "residual", "bias": "all"},
}


def adapted(component, name="default", **fields):
    """A model with an adapter that is not zero."""
    model = MODELS[component]()
    model.add_adapter(LRLoraConfig(**{"r": 2, "target_modules": ATTENTION, **fields}), name)
    disturb(model, name)
    return model


@pytest.mark.parametrize("component", MODELS)
def test_it_trains_from_no_change(component):
    model = MODELS[component]()
    plain = says(model)
    model.add_adapter(LRLoraConfig(r=2, target_modules=ATTENTION))
    torch.testing.assert_close(says(model), plain, rtol=0, atol=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".lrlora_delta." in name for name in trained)
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2))
    losses = []
    for _ in range(6):
        loss = (model.train()(**inputs_of(model)).sample - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("component", MODELS)
def test_what_diffusers_does_with_adapters(component):
    plain = says(MODELS[component]())
    model = adapted(component)
    one = says(model)
    assert not torch.allclose(one, plain, atol=1e-4)
    model.disable_adapters()
    torch.testing.assert_close(says(model), plain, rtol=0, atol=0)
    model.enable_adapters()
    torch.testing.assert_close(says(model), one, rtol=0, atol=0)

    # the scale of the update itself, which a half of the change of the output would not show
    layer = deltas(model)[0].layer
    whole = layer.get_delta_weight("default")
    model.set_adapters("default", 0.5)
    torch.testing.assert_close(layer.get_delta_weight("default"), 0.5 * whole)
    half = says(model)
    model.set_adapters("default", 1.0)
    how = "cross_attention_kwargs" if component == "unet" else "joint_attention_kwargs"
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs_of(model), **{how: {"scale": 0.5}}).sample, half)
    torch.testing.assert_close(says(model), one)

    weights = {name: value.clone() for name, value in model.state_dict().items() if ".base_layer." in name}
    model.fuse_lora(safe_fusing=True)
    torch.testing.assert_close(says(model), one, rtol=1e-4, atol=1e-5)
    model.unfuse_lora()
    for name, value in weights.items():
        assert torch.equal(model.state_dict()[name], value)
    model.fuse_lora(lora_scale=0.5)
    torch.testing.assert_close(says(model), half, rtol=1e-4, atol=1e-5)
    model.unfuse_lora()
    model.set_adapters("default", 1.0)

    model.add_adapter(LRLoraConfig(r=3, phi="residual", target_modules=["to_q"]), "other")
    disturb(model, "other")
    other = says(model)
    model.set_adapters(["default", "other"], [1.0, 0.0])
    torch.testing.assert_close(says(model), one)
    model.set_adapters(["default", "other"])
    assert not torch.allclose(says(model), one, atol=1e-5) and not torch.allclose(says(model), other, atol=1e-5)
    model.delete_adapters("other")
    torch.testing.assert_close(says(model), one)
    model.unload_lora()
    torch.testing.assert_close(says(model), plain, rtol=0, atol=0)
    assert not deltas(model)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("component", MODELS)
def test_a_model_s_file_comes_back(component, fields, tmp_path):
    model = adapted(component, **fields)
    model.save_lora_adapter(tmp_path)
    again = MODELS[component]()
    load_lora_adapter(again, tmp_path)
    torch.testing.assert_close(says(again), says(model), rtol=0, atol=0)
    kept, ours = get_peft_model_state_dict(again), get_peft_model_state_dict(model)
    torch.testing.assert_close(kept, ours, rtol=0, atol=0)
    if fields.get("bias", "none") != "none":
        with pytest.raises(ValueError, match="only 1 adapter with bias"):
            load_lora_adapter(again, tmp_path / WEIGHT_NAME, "second")
        return
    load_lora_adapter(again, tmp_path / WEIGHT_NAME, "second")
    assert again.active_adapters() == ["second"]
    assert {adapter for _, _, adapter, delta in deltas(again) if delta.A.requires_grad} == {"second"}


@pytest.mark.parametrize("component", MODELS)
def test_a_pipeline_s_file_comes_back(component, tmp_path):
    model = adapted(component)
    layers, settings = f"{component}_lora_layers", f"{component}_lora_adapter_metadata"
    tensors, config = get_peft_model_state_dict(model), model.peft_config["default"]
    pipeline_of(model).save_lora_weights(tmp_path, **{layers: tensors, settings: config.to_dict()})
    again = MODELS[component]()
    load_lora_adapter(again, tmp_path, prefix=component)
    torch.testing.assert_close(says(again), says(model), rtol=0, atol=0)

    pipeline_of(model).save_lora_weights(tmp_path / "bare", **{layers: tensors})
    with pytest.raises(InputError, match=r"holds no configuration .* unet_lora_adapter_metadata="):
        load_lora_adapter(MODELS[component](), tmp_path / "bare", prefix=component)
    again = MODELS[component]()
    load_lora_adapter(again, tmp_path / "bare", prefix=component, config=LRLoraConfig(r=2, target_modules=ATTENTION))
    torch.testing.assert_close(says(again), says(model), rtol=0, atol=0)


@pytest.mark.parametrize("component", MODELS)
@pytest.mark.parametrize("has_settings", [True, False])
def test_diffusers_itself_fails_and_changes_nothing(component, has_settings, tmp_path):
    """When diffusers reads such files one day, or drops them without an error, this says so."""
    model = adapted(component)
    model.save_lora_adapter(tmp_path / "model")
    settings = {f"{component}_lora_adapter_metadata": model.peft_config["default"].to_dict()} if has_settings else {}
    layers = {f"{component}_lora_layers": get_peft_model_state_dict(model)}
    pipeline_of(model).save_lora_weights(tmp_path / "pipeline", **layers, **settings)
    fresh = MODELS[component]()
    plain, pipeline = says(fresh), pipeline_of(fresh)
    with pytest.raises(TypeError, match="LoraConfig"):
        fresh.load_lora_adapter(tmp_path / "model", prefix=None, use_safetensors=True)
    with pytest.raises(TypeError if has_settings else IndexError):
        pipeline.load_lora_weights(tmp_path / "pipeline", weight_name=WEIGHT_NAME)
    torch.testing.assert_close(says(fresh), plain, rtol=0, atol=0)


def test_what_does_not_fit_is_refused_and_the_model_is_as_it_was(tmp_path):
    from peft import LoraConfig

    adapted("unet").save_lora_adapter(tmp_path)
    model = unet()
    plain = says(model)

    def refused(match, **how):
        with pytest.raises(InputError, match=match):
            load_lora_adapter(how.pop("model", model), how.pop("path", tmp_path), **how)

    refused("is no whole file of safetensors", path=tmp_path / "nowhere")
    refused(r"holds nothing of 'unet'; .*: down_blocks, mid_block, up_blocks", prefix="unet")
    fewer = LRLoraConfig(r=2, target_modules=["to_q"])
    refused(r"the model has no place for \d+ of its tensors", config=fewer)
    more = LRLoraConfig(r=2, target_modules=[*ATTENTION, "conv1"])
    refused(r"it lacks \d+ tensors \(.*conv1.lrlora_delta.A", config=more)
    refused("does not fit this base model", model=unet(12))
    assert says(model).equal(plain) and not deltas(model) and all(p.requires_grad for p in model.parameters())
    load_lora_adapter(model, tmp_path)
    refused("has an adapter named 'default' already")
    lora = flux()
    lora.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    lora.save_lora_adapter(tmp_path / "lora")
    refused("of type LORA, not LRLORA; load it with diffusers", model=flux(), path=tmp_path / "lora")
