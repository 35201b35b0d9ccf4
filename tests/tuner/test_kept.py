import contextlib
import copy
import threading

import pytest
import torch
from peft import get_peft_model
from torch import nn

from lrlora import LRLoraConfig, ops
from tests.conftest import disturb


@pytest.fixture
def adapted(monkeypatch):
    """A model of one adapted layer in evaluation, and a list that grows with every update that is made."""
    model = nn.Sequential()
    model.add_module("layer", nn.Linear(16, 24))
    model = get_peft_model(model, LRLoraConfig(r=4, target_modules=["layer"])).eval()
    disturb(model)
    made = []
    original = ops.adapted_weight
    monkeypatch.setattr(ops, "adapted_weight", lambda *a, **k: made.append(1) or original(*a, **k))
    return model, made


# few rows, for which the base layer is called, and many, for which W0 and dW are added
FEW, MANY = (torch.randn(rows, 16, generator=torch.Generator().manual_seed(0)) for rows in (3, 100))
X = FEW


def run(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        return model(x)


def fresh(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    """The same without anything kept."""
    return model(x).detach()


def test_it_is_made_once(adapted):
    model, made = adapted
    assert torch.equal(run(model), run(model))
    torch.testing.assert_close(run(model), fresh(model))
    assert len(made) == 1


def change_b(delta, layer):
    with torch.no_grad():
        delta.B.mul_(2)


def change_a_through_data(delta, layer):
    delta.A.data.mul_(2)


def change_c_through_data(delta, layer):
    delta.theta.data.add_(0.05)


def change_tau_through_data(delta, layer):
    delta.tau.data.mul_(0.5)


def change_scale(delta, layer):
    layer.scale_layer(3.0)


def load(delta, layer):
    layer.load_state_dict({k: v + 0.1 for k, v in layer.state_dict().items()})


CHANGES = [change_b, change_a_through_data, change_c_through_data, change_tau_through_data, change_scale, load]


def change_base(delta, layer):
    with torch.no_grad():
        layer.base_layer.weight.mul_(2)


def replace_base(delta, layer):
    layer.base_layer.weight.data = layer.base_layer.weight.data * 2


def change_base_through_data(delta, layer):
    layer.base_layer.weight.data.mul_(2)


@pytest.mark.parametrize("x", [FEW, MANY], ids=["few", "many"])
@pytest.mark.parametrize("change", [*CHANGES, change_base, replace_base, change_base_through_data])
def test_no_change_is_missed(adapted, change, x):
    model, made = adapted
    before = run(model, x)
    layer = model.base_model.model.layer
    change(layer.delta("default"), layer)
    assert not torch.equal(run(model, x), before)
    torch.testing.assert_close(run(model, x), fresh(model, x))
    # W0 is no part of what is kept
    assert len(made) == (2 if change in CHANGES else 1)


def test_threads_of_other_precision_share_it(adapted):
    model, _ = adapted
    want, errors, ends = fresh(model), [], threading.Event()

    def serve(number: int) -> None:
        context = torch.autocast("cpu", torch.bfloat16) if number % 2 else contextlib.nullcontext()
        try:
            for _ in range(150):
                with context:
                    got = run(model)
                torch.testing.assert_close(got.float(), want, rtol=0, atol=0.1 if number % 2 else 1e-5)
        except Exception as error:
            errors.append(error)

    def drop() -> None:
        while not ends.is_set():
            model.eval()

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    dropping = threading.Thread(target=drop)
    for thread in (*threads, dropping):
        thread.start()
    for thread in threads:
        thread.join()
    ends.set()
    dropping.join()
    assert not errors


def test_threads_do_not_disturb_experts():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight3 = nn.Parameter(torch.randn(2, 24, 16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bi,eoi->beo", x, self.weight3)

    model = nn.Sequential()
    model.add_module("experts", Experts())
    model = get_peft_model(model, LRLoraConfig(r=2, target_parameters=["experts.weight3"])).eval()
    disturb(model)
    want, errors = fresh(model), []

    def serve() -> None:
        try:
            for _ in range(100):
                torch.testing.assert_close(run(model), want)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_it_is_not_used_where_gradients_are_wanted(adapted):
    model, made = adapted
    run(model)
    model(X).sum().backward()
    assert model.base_model.model.layer.delta("default").B.grad is not None
    assert len(made) == 1


def test_in_training_few_rows_keep_it_from_the_second_call_on_and_a_call_with_gradients_frees_it(adapted):
    model, made = adapted
    want = run(model)
    model.train()
    made.clear()
    kept = model.base_model.model.layer.delta("default").kept
    for times in (0, 1, 1, 1):
        torch.testing.assert_close(run(model), want)
        assert len(made) == times and len(kept._entries) == times
    # what begins the next answers does not free it
    run(model, MANY)
    assert kept._entries
    model(X).sum().backward()
    assert not kept._entries
    run(model)
    assert not kept._entries


def test_in_training_many_rows_do_not_keep_it(adapted):
    model, made = adapted
    model.train()
    for _ in range(3):
        # bit for bit what is computed with gradients: trl's DPO subtracts one from the other
        assert torch.equal(run(model, MANY), model(MANY))
        assert torch.equal(run(model), model(X))
    assert not made


def test_what_checkpoints_compute_without_gradients_is_not_kept(adapted):
    model, made = adapted
    model.train()
    kept = model.base_model.model.layer.delta("default").kept
    # as of gradients that are accumulated: each forward pass is reentrant checkpointing's without gradients
    for _ in range(3):
        y = torch.utils.checkpoint.checkpoint(model, X.clone().requires_grad_(), use_reentrant=True)
        assert not kept._entries
        y.sum().backward()
    assert not made


def test_training_merging_and_copying_drop_it(adapted):
    model, _ = adapted
    kept = model.base_model.model.layer.delta("default").kept
    for drop in (model.train, model.merge_adapter):
        model.unmerge_adapter() if model.base_model.model.layer.merged else None
        model.eval()
        run(model)
        assert kept._entries
        assert not copy.deepcopy(model).base_model.model.layer.delta("default").kept._entries
        drop()
        assert not kept._entries


def test_looking_at_the_update_keeps_nothing_and_drops_nothing(adapted):
    model, made = adapted
    run(model)
    layer = model.base_model.model.layer
    kept = layer.delta("default").kept
    entries = kept._entries
    assert entries
    layer.get_delta_weight("default")
    assert kept._entries is entries
    kept.drop()
    layer.get_delta_weight("default")
    assert not kept._entries
    assert len(made) == 1


def test_inference_mode_and_back(adapted):
    model, made = adapted
    with torch.inference_mode():
        first = model(X)
    assert torch.equal(run(model), first)
    torch.testing.assert_close(fresh(model), first)
    assert len(made) == 1


def test_other_parameters_by_functional_call(adapted):
    model, _ = adapted
    before = run(model)
    other = {name: value * 2 for name, value in model.named_parameters()}
    with torch.no_grad():
        changed = torch.func.functional_call(model, other, X)
    assert not torch.allclose(changed, before)
    assert torch.equal(run(model), before)
