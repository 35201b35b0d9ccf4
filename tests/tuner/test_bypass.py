"""A plain base layer may be left out of the computation; one that somebody changed is called, every time."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from lrlora import InputError, LRLoraConfig
from tests.conftest import disturb

MANY = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))


def adapted(base: nn.Module | None = None) -> tuple[nn.Module, nn.Module]:
    """A model of one adapted layer, and its base layer."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("layer", nn.Linear(16, 24) if base is None else base)
    model = get_peft_model(model, LRLoraConfig(r=4, target_modules=["layer"]))
    disturb(model)
    return model, model.base_model.model.layer.base_layer


def attached(kind: str, base: nn.Module, calls: list) -> object:
    """Attach a hook of this kind that counts; returns what removes it."""
    is_global = kind.startswith("global")
    where = nn.modules.module if is_global else base
    name = f"register_module_{kind.removeprefix('global ')}" if is_global else f"register_{kind}"

    def hook(module: nn.Module, *_: object) -> None:
        if module is base:
            calls.append(1)

    return getattr(where, name)(hook)


HOOKS = [
    f"{scope}{kind}"
    for scope in ("", "global ")
    for kind in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("is_training", [True, False])
def test_a_hook_sees_every_call(kind, is_training):
    model, base = adapted()
    model.train(is_training)
    want = model(MANY)
    calls: list = []
    handle = attached(kind, base, calls)
    try:
        x = MANY.clone().requires_grad_()
        got = model(x)
        got.sum().backward()
    finally:
        handle.remove()
    assert calls == [1]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_hook_that_changes_the_output_is_heard(is_training):
    model, base = adapted()
    model.train(is_training)
    want = model(MANY) + 1
    base.register_forward_hook(lambda module, args, kwargs, output: output + 1, with_kwargs=True)
    torch.testing.assert_close(model(MANY), want)


def test_an_exchanged_forward_is_called(monkeypatch):
    model, base = adapted()
    want = model(MANY) + 1
    plain = base.forward
    monkeypatch.setattr(base, "forward", lambda x: plain(x) + 1)
    torch.testing.assert_close(model(MANY), want)


def test_the_exchanged_forward_of_all_linear_layers_is_called(monkeypatch):
    model, _ = adapted()
    want = model(MANY) + 1
    plain = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: plain(self, x) + 1)
    torch.testing.assert_close(model(MANY), want)


def test_hooks_of_accelerate_are_called():
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Doubling(ModelHook):
        def post_forward(self, module, output):
            return output * 2

    model, base = adapted()
    share = model(MANY) - base(MANY)
    add_hook_to_module(base, Doubling())
    torch.testing.assert_close(model(MANY), base(MANY) + share)


class Shifted(nn.Linear):
    """A subclass that calls itself differently."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x) + 1


def test_a_subclass_is_called():
    model, base = adapted(Shifted(16, 24))
    share = model.base_model.model.layer.get_delta_weight("default")
    torch.testing.assert_close(model(MANY), base(MANY) + MANY @ share.T)


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 2


COMPUTED = {
    "parametrization": lambda base: parametrize.register_parametrization(base, "weight", Doubled()),
    "weight_norm": parametrizations.weight_norm,
    "the older weight_norm": weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "the older spectral_norm": nn.utils.spectral_norm,
    "pruning": lambda base: prune.l1_unstructured(base, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_computed_weight_is_the_layer_s_and_is_not_merged_into(kind):
    model, base = adapted()
    share = model.base_model.model.layer.get_delta_weight("default")
    COMPUTED[kind](base)
    model.eval()
    calls: list = []
    base.register_forward_hook(lambda *_: calls.append(1))
    got = model(MANY)
    assert calls == [1]
    torch.testing.assert_close(got, base(MANY) + MANY @ share.T)
    with pytest.raises(InputError, match=r"cannot merge into weight of .*Linear: .*remove_parametrizations"):
        model.merge_adapter()
    torch.testing.assert_close(model(MANY), got)


def test_a_mask_made_permanent_can_be_merged_into():
    model, base = adapted()
    prune.l1_unstructured(base, "weight", 0.5)
    prune.remove(base, "weight")
    want = model(MANY)
    model.merge_adapter()
    torch.testing.assert_close(model(MANY), want)
