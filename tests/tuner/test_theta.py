"""c = c_start + 10 theta: any optimizer trains c at its own rate, and adapters that hold c itself load as they were."""

import json

import peft
import peft.optimizers
import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from lrlora import InputError, LRLoraConfig, hotswap_adapter, param_groups
from lrlora.method.nonlinearity import initial_coefficients
from lrlora.saved.updates import stored_updates
from lrlora.tuner import deltas
from tests.conftest import disturb, tiny_llama, token_ids

FIELDS = {"r": 2, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def of_version_1(folder, **fields):
    """An adapter folder as it was written before theta: c itself is in the file."""
    model = get_peft_model(tiny_llama(), LRLoraConfig(**{**FIELDS, **fields}))
    disturb(model)
    model.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(3)
    made, c = {}, None
    for key, value in tensors.items():
        if key.endswith(".theta"):
            if c is None or fields.get("share") != "global":
                c = initial_coefficients(11, "sinc") + 0.3 * torch.randn(11, generator=generator)
            made[key.removesuffix("theta") + "c"] = c.clone()
        else:
            made[key] = value
    save_file(made, file, metadata={"format": "pt"})
    described = folder / "adapter_config.json"
    config = json.loads(described.read_text())
    for name in [name for name in config if name.startswith("carrier")]:
        del config[name]
    described.write_text(json.dumps({**config, "config_version": 1}))
    return made


@pytest.mark.parametrize("share", ["matrix", "global", "frozen"])
def test_an_adapter_of_version_1_loads_bit_for_bit_and_is_saved_as_it_was(tmp_path, share):
    tensors = of_version_1(tmp_path / "old", share=share)
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "old").eval()
    for name, _, _, delta in deltas(model):
        c = tensors[f"{name}.lrlora_delta.c"]
        assert torch.equal(delta.c, c)
    for update in stored_updates(tmp_path / "old"):
        assert torch.equal(update.c, tensors[f"base_model.model.{update.layer}.lrlora_delta.c"])
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["config_version"] == 1


def test_an_adapter_of_version_1_in_the_place_of_one_of_today_and_back(tmp_path):
    of_version_1(tmp_path / "old")
    today = get_peft_model(tiny_llama(), LRLoraConfig(**FIELDS)).eval()
    disturb(today)
    today.save_pretrained(tmp_path / "new")
    ids = token_ids()
    with torch.no_grad():
        expected = today(ids).logits
        old = PeftModel.from_pretrained(tiny_llama(), tmp_path / "old").eval()(ids).logits
        hotswap_adapter(today, str(tmp_path / "old"))
        torch.testing.assert_close(today(ids).logits, old, rtol=0, atol=0)
        hotswap_adapter(today, str(tmp_path / "new"))
        torch.testing.assert_close(today(ids).logits, expected, rtol=0, atol=0)


def test_a_checkpoint_of_version_1_is_not_put_into_an_adapter_of_today(tmp_path):
    # as the Trainer does when a run goes on that an earlier version began: c would be left out in silence
    tensors = of_version_1(tmp_path / "old")
    model = get_peft_model(tiny_llama(), LRLoraConfig(**FIELDS))
    with pytest.raises(InputError, match="config_version 1, and the adapter in the model has 2"):
        set_peft_model_state_dict(model, tensors)


def test_version_1_gets_the_rate_of_c_itself(tmp_path):
    of_version_1(tmp_path)
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True)
    assert param_groups(model, lr=1e-3)[-1]["lr"] == pytest.approx(1e-2)


def change_of_c(optimizer_of, decay: float = 0.0) -> torch.Tensor:
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), LRLoraConfig(**FIELDS))
    optimizer = optimizer_of(model)
    ids = token_ids(4)
    for _ in range(10):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack([delta.c.detach() - delta.c_start for *_, delta in deltas(model)])


def test_c_moves_alike_with_groups_of_its_own_and_without():
    plain = change_of_c(lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0))
    grouped = change_of_c(lambda model: torch.optim.AdamW(param_groups(model, lr=1e-3), weight_decay=0.0))
    assert plain.abs().max() > 0.05
    torch.testing.assert_close(plain, grouped, rtol=1e-3, atol=1e-4)


def test_weight_decay_pulls_phi_to_where_it_started():
    model = get_peft_model(tiny_llama(), LRLoraConfig(**FIELDS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(100):
        optimizer.step()
    for *_, delta in deltas(model):
        assert torch.equal(delta.c, delta.c_start)


def test_peft_s_helper_for_lora_plus_gives_b_its_rate():
    model = get_peft_model(tiny_llama(), LRLoraConfig(**FIELDS))
    optimizer = peft.optimizers.create_loraplus_optimizer(
        model=model, optimizer_cls=torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for *_, delta in deltas(model):
        assert (rate_of[id(delta.A)], rate_of[id(delta.B)]) == (1e-4, pytest.approx(16e-4))
        assert rate_of[id(delta.theta)] == pytest.approx(1e-4)
    with pytest.raises(InputError, match="leave loraplus_lr_embedding out"):
        peft.optimizers.create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16, loraplus_lr_embedding=1e-6
        )


def moved_by(scale: float, make) -> list[torch.Tensor]:
    """How far a step of SGD moves B A of each layer, with A `scale` times as large and B as much smaller."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), LRLoraConfig(**FIELDS, init_weights=False)).double()
    factors = [delta for *_, delta in deltas(model)]
    with torch.no_grad():
        for delta in factors:
            delta.A.mul_(scale)
            delta.B.div_(scale)
    before = [(delta.B @ delta.A).detach() for delta in factors]
    optimizer = make(model)
    words = torch.arange(12).reshape(2, 6) % 7 + 3
    model(input_ids=words, labels=words).loss.backward()
    optimizer.step()
    assert all(delta.theta.grad is not None and delta.theta.abs().max() > 0 for delta in factors)
    return [delta.B @ delta.A - old for delta, old in zip(factors, before, strict=True)]


def test_peft_s_riemannian_optimizer_moves_the_product_alike_however_it_is_split():
    def riemannian(model):
        return peft.optimizers.create_riemannian_optimizer(model, torch.optim.SGD, lr=1e-6, reg=1e-14)

    def plain(model):
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)

    for one, other in zip(moved_by(1.0, riemannian), moved_by(3.0, riemannian), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())
    one, other = moved_by(1.0, plain)[0], moved_by(3.0, plain)[0]
    assert (one - other).abs().max() > 0.5 * one.abs().max()


def test_peft_s_riemannian_optimizer_preconditions_what_is_in_the_formula():
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(), LRLoraConfig(**FIELDS, init_weights=False))
    optimizer = peft.optimizers.create_riemannian_optimizer(model, torch.optim.SGD, lr=0.1, reg=1e-2)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in trained]
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    _, _, _, delta = deltas(model)[0]
    reg = 1e-2 * torch.eye(len(delta.A))
    A = delta.A - 0.1 * torch.linalg.inv(delta.B.T @ delta.B + reg) @ delta.A.grad
    B = delta.B - 0.1 * delta.B.grad @ torch.linalg.inv(delta.A @ delta.A.T + reg)
    theta = delta.theta - 0.1 * delta.theta.grad
    optimizer.step()
    for new, expected in ((delta.A, A), (delta.B, B), (delta.theta, theta)):
        torch.testing.assert_close(new, expected, rtol=1e-3, atol=1e-4)


def test_helpers_that_are_derived_for_lora_are_refused_by_name_and_lora_keeps_them():
    ours = get_peft_model(tiny_llama(), LRLoraConfig(**FIELDS))
    plain = get_peft_model(tiny_llama(), peft.LoraConfig(**FIELDS))
    with pytest.raises(InputError, match="LoRA-FA fits s B A to the full gradient by least squares"):
        peft.optimizers.create_lorafa_optimizer(ours, r=2, lora_alpha=4, lr=1e-3)
    groups = peft.optimizers.create_loraplus_optimizer(
        plain, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16
    ).param_groups
    assert sorted({group["lr"] for group in groups if group["params"]}) == [1e-4, pytest.approx(16e-4)]
    assert peft.optimizers.create_lorafa_optimizer(plain, r=2, lora_alpha=8, lr=1e-3).param_groups
