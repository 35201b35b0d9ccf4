"""A saved adapter in the place of a loaded one."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter as hotswap_of_peft
from safetensors.torch import load_file, save_file

from lrlora import InputError, LRLoraConfig, hotswap_adapter
from lrlora.tuner import deltas
from tests.conftest import disturb, tiny_bert, tiny_llama, token_ids

FIELDS = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def model_with(scale: float = 1.0, **fields) -> PeftModel:
    model = get_peft_model(tiny_llama(), LRLoraConfig(**{**FIELDS, **fields}))
    disturb(model)
    for *_, delta in deltas(model):
        with torch.no_grad():
            delta.B *= scale
    return model.eval()


def saved(folder, **fields) -> str:
    model_with(scale=3, **fields).save_pretrained(folder)
    return str(folder)


OTHERS = [
    {},
    {"lora_alpha": 1},
    {"tau": 0.2},
    {"r": 5},
    {"num_basis": 5},
    {"phi": "residual"},
    {"phi": "sine"},
    {"share": "global"},
    {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"v_proj": 7}},
    {"target_modules": ["q_proj"]},
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_it_equals_a_model_that_was_loaded_afresh(tmp_path, other):
    folder = saved(tmp_path / "other", **other)
    ids = token_ids()
    with torch.no_grad():
        expected = PeftModel.from_pretrained(tiny_llama(), folder).eval()(ids).logits
        model = model_with()
        before = model(ids).logits
        assert not torch.allclose(before, expected)
        hotswap_adapter(model, folder)
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)
        model.save_pretrained(tmp_path / "again")
        again = PeftModel.from_pretrained(tiny_llama(), tmp_path / "again").eval()
        torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=0)
        # and back
        hotswap_adapter(model, saved(tmp_path / "first"))
        expected = PeftModel.from_pretrained(tiny_llama(), tmp_path / "first").eval()(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


def test_alike_adapters_stay_in_their_tensors(tmp_path):
    folder = saved(tmp_path)
    model = model_with()
    tensors = {name: p for name, p in model.named_parameters() if "lrlora" in name}
    places = {name: p.data_ptr() for name, p in tensors.items()}
    hotswap_adapter(model, folder)
    assert {name: p.data_ptr() for name, p in model.named_parameters() if "lrlora" in name} == places
    assert all(p.requires_grad for name, p in model.named_parameters() if "lrlora" in name)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_model_goes_on_without_a_new_compilation(tmp_path):
    folder = saved(tmp_path)
    ids = token_ids()
    model = model_with()
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=False)
        first = compiled(ids).logits
        hotswap_adapter(model, folder)
        with torch._dynamo.config.patch(error_on_recompile=True):
            second = compiled(ids).logits
        expected = PeftModel.from_pretrained(tiny_llama(), folder).eval()(ids).logits
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, expected)


def test_a_trained_head_comes_along(tmp_path):
    def make(seed: int) -> PeftModel:
        model = get_peft_model(tiny_bert(), LRLoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")).eval()
        disturb(model)
        head = model.base_model.model.classifier.modules_to_save["default"]
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(seed))
        return model

    make(1).save_pretrained(tmp_path)
    model = make(2)
    hotswap_adapter(model, str(tmp_path))
    torch.testing.assert_close(model(token_ids()).logits, make(1)(token_ids()).logits)


def state_of(model: PeftModel) -> dict:
    """Everything that a swap could change: values, what is trained, scales, and the configuration."""
    return {
        **{name: (value.clone(), value.requires_grad) for name, value in model.state_dict(keep_vars=True).items()},
        "scales": {name: dict(layer.scaling) for name, layer, _, _ in deltas(model)},
        "config": model.peft_config["default"].to_dict(),
    }


def assert_same_state(model: PeftModel, before: dict) -> None:
    after = state_of(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, tuple):
            assert torch.equal(after[name][0], value[0]) and after[name][1] == value[1], name
        else:
            assert after[name] == value, name


def bert_with(seed: int, **fields) -> PeftModel:
    model = get_peft_model(tiny_bert(), LRLoraConfig(r=2, target_modules=["query", "value"], **fields)).eval()
    disturb(model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("modules_to_save" in name or name.endswith("bias") or name.endswith(".B")):
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize(
    "fields", [{"modules_to_save": ["classifier"]}, {"bias": "all"}, {"bias": "lrlora_only"}], ids=str
)
def test_what_is_trained_beside_it_comes_along(tmp_path, fields):
    model, other = bert_with(1, **fields), bert_with(2, lora_alpha=32, **fields)
    other.save_pretrained(tmp_path / "other")
    expected = other(token_ids()).logits
    hotswap_adapter(model, str(tmp_path / "other"))
    torch.testing.assert_close(model(token_ids()).logits, expected)
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(tiny_bert(), tmp_path / "again").eval()
    torch.testing.assert_close(again(token_ids()).logits, expected)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"modules_to_save": ["classifier"]}, {}),
        ({}, {"modules_to_save": ["classifier"]}),
        ({"bias": "all"}, {}),
        ({}, {"bias": "lrlora_only"}),
        ({"modules_to_save": ["classifier"]}, {"modules_to_save": ["pooler"]}),
    ],
    ids=str,
)
def test_what_one_of_them_alone_trains_is_refused_and_nothing_changes(tmp_path, ours, theirs):
    bert_with(2, lora_alpha=32, **theirs).save_pretrained(tmp_path)
    model = bert_with(1, **ours)
    before = state_of(model)
    with pytest.raises(InputError, match=r"load it with model.load_adapter instead, or begin with an adapter"):
        hotswap_adapter(model, str(tmp_path))
    assert_same_state(model, before)


@pytest.mark.parametrize("fault", ["nan", "tau", "cut", "missing"])
def test_a_damaged_file_changes_nothing(tmp_path, fault):
    folder = saved(tmp_path, lora_alpha=32)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(name for name in tensors if name.endswith(".tau" if fault == "tau" else ".B"))
    if fault == "missing":
        del tensors[first]
    elif fault == "tau":
        tensors[first].zero_()
    else:
        tensors[first][0, 0] = float("nan") if fault == "nan" else 0.0
    save_file(tensors, file)
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-20])
    model = model_with()
    before = state_of(model)
    with pytest.raises(InputError, match=r"is broken|is not whole|holds no whole"):
        hotswap_adapter(model, folder)
    assert_same_state(model, before)


def test_a_shared_phi_stays_one_parameter(tmp_path):
    model = model_with(share="block")
    hotswap_adapter(model, saved(tmp_path, share="global"))
    assert len({id(delta.theta) for *_, delta in deltas(model)}) == 1
    hotswap_adapter(model, saved(tmp_path / "other", share="block"))
    assert len({id(delta.theta) for *_, delta in deltas(model)}) == 2


class TestRefused:
    """What cannot work is said by name, and nothing is changed."""

    @pytest.fixture
    def model(self):
        model = model_with()
        before = model(token_ids()).logits
        yield model
        torch.testing.assert_close(model(token_ids()).logits, before)

    def test_other_layers(self, model, tmp_path):
        with pytest.raises(InputError, match=r"adapts 2 layers that adapter 'default' does not .*o_proj.*load_adapter"):
            hotswap_adapter(model, saved(tmp_path, target_modules=["q_proj", "o_proj"]))

    def test_another_base(self, model, tmp_path):
        config = tiny_llama().config
        config.num_key_value_heads = 2
        other = get_peft_model(type(tiny_llama())(config), LRLoraConfig(**FIELDS))
        other.save_pretrained(tmp_path)
        with pytest.raises(
            InputError, match=r"does not fit this base model: its update of .*v_proj is 32x32, needed 16x32"
        ):
            hotswap_adapter(model, str(tmp_path))

    def test_an_adapter_of_another_method(self, model, tmp_path):
        get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
        with pytest.raises(InputError, match=r"adapter of type .*LORA, needed LRLORA"):
            hotswap_adapter(model, str(tmp_path))

    def test_a_name_that_is_not_loaded(self, model, tmp_path):
        with pytest.raises(InputError, match=r"named 'french'; there are: default"):
            hotswap_adapter(model, saved(tmp_path), adapter_name="french")

    def test_a_merged_adapter(self, model, tmp_path):
        model.merge_adapter()
        with pytest.raises(InputError, match=r"'default' is merged into .*; call unmerge_adapter"):
            hotswap_adapter(model, saved(tmp_path))

    def test_peft_s_own_function_refuses_by_name(self, model, tmp_path):
        with pytest.raises(ValueError, match="LRLORA"):
            hotswap_of_peft(model, saved(tmp_path), "default", torch_device="cpu")
