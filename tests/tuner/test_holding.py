"""One model, however it is held: loaded, copied, moved, saved, pickled."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModelForCausalLM

from lrlora import LRLoraConfig, param_groups
from lrlora.tuner import deltas
from tests.conftest import disturb, tiny_llama, token_ids

SHARES = ("matrix", "type", "block", "global", "frozen")
# of four layers: q_proj and v_proj of two blocks
GROUPS = {"matrix": 4, "type": 2, "block": 2, "global": 1, "frozen": 0}
FIELDS = {"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def config_of(share: str, **fields) -> LRLoraConfig:
    return LRLoraConfig(**{**FIELDS, "share": share, "tau": 0.5, **fields})


def adapted(share: str, **fields) -> PeftModel:
    """The tiny Llama with an adapter that has moved; what layers share has moved once."""
    model = get_peft_model(tiny_llama(), config_of(share, **fields))
    disturb(model)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids()).logits


def check_trains_as_one(model: nn.Module, share: str, adapter_name: str = "default") -> None:
    """So many coefficients are trained as the share says, and they are equal within a group after steps."""
    found = deltas(model, adapter_name)
    thetas = [delta.theta for *_, delta in found if isinstance(delta.theta, nn.Parameter)]
    trained = {id(theta) for theta in thetas if theta.requires_grad}
    assert len(trained) == GROUPS[share]
    named = [n for n, p in model.named_parameters() if n.endswith(f"{adapter_name}.theta") and p.requires_grad]
    assert len(named) == len(trained)
    before = [delta.c.detach().clone() for *_, delta in found]
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-2))
    ids = token_ids()
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = [delta.c.detach() for *_, delta in found]
    assert share == "frozen" or len({tuple(c.tolist()) for c in after}) == GROUPS[share]
    assert all(torch.equal(a, b) == (share == "frozen") for a, b in zip(before, after, strict=True))


def pickled(model, folder):
    return pickle.loads(pickle.dumps(model))


def saved_whole(model, folder):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_joblib(model, folder):
    import joblib

    joblib.dump(model, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


def moved(model, folder):
    return model.to("cpu").half().float().double().float()


def emptied_and_loaded(model, folder):
    # to the meta device and back makes new parameters of all
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model = model.to("meta").to_empty(device="cpu")
    for module in model.modules():
        if "RotaryEmbedding" in type(module).__name__:  # its buffers are in no state dict
            module.__init__(model.config)
    model.load_state_dict(state)
    return model


def assigned(model, folder):
    fresh = get_peft_model(tiny_llama(), model.peft_config["default"])
    fresh.load_state_dict(model.state_dict(), assign=True)
    return fresh


def by_peft(model, folder):
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(tiny_llama(), folder, is_trainable=True)


def by_peft_without_memory(model, folder):
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(tiny_llama(), folder, is_trainable=True, low_cpu_mem_usage=True)


def by_transformers(model, folder):
    tiny_llama().save_pretrained(folder / "base")
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    again = AutoModelForCausalLM.from_pretrained(folder / "adapter")
    # loaded for inference; this is how one trains on
    again.set_adapter("default")
    return again


def by_load_adapter(model, folder):
    model.save_pretrained(folder)
    base = tiny_llama()
    info = base.load_adapter(str(folder), is_trainable=True)
    assert not info.missing_keys and not info.unexpected_keys
    return base


def by_load_adapter_twice(model, folder):
    base = by_load_adapter(model, folder)
    base.load_adapter(str(folder), adapter_name="second", is_trainable=True)
    first, second = ({id(delta.theta) for *_, delta in deltas(base, name)} for name in ("default", "second"))
    assert len(first) == len(second) and not first & second
    base.set_adapter("default")
    return base


def from_transformers_save(model, folder):
    base = tiny_llama()
    base.add_adapter(config_of(model.peft_config["default"].share))
    base.load_state_dict({k.removeprefix("base_model.model."): v for k, v in model.state_dict().items()})
    base.save_pretrained(folder)
    return PeftModel.from_pretrained(tiny_llama(), folder, is_trainable=True)


WAYS = [
    lambda model, folder: copy.deepcopy(model), pickled, saved_whole, by_joblib, moved, emptied_and_loaded, assigned,
    by_peft, by_peft_without_memory, by_transformers, by_load_adapter, by_load_adapter_twice, from_transformers_save,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_it_stays_one_model(tmp_path, way, share):
    model = adapted(share)
    want = logits(model)
    again = way(model, tmp_path).eval()
    # `half` rounds the base
    torch.testing.assert_close(logits(again), want, rtol=0, atol=1e-2 if way is moved else 0)
    check_trains_as_one(again.train(), share)


def test_the_copy_of_one_layer_does_not_train_the_others():
    model = adapted("global")
    first, second = (layer for _, layer, *_ in deltas(model)[:2])
    alone = copy.deepcopy(first)
    assert alone.delta("default").theta is not second.delta("default").theta
    alone.delta("default").register_parameter("theta", nn.Parameter(torch.zeros(11)))
    assert second.delta("default").c.abs().max() > 0


def test_a_deleted_adapter_parts_from_nobody():
    model = adapted("global")
    model.add_adapter("second", config_of("global"))
    model.set_adapter("second")
    model.delete_adapter("default")
    check_trains_as_one(model, "global", "second")


def answer(model: nn.Module, queue) -> None:
    queue.put(logits(model).tolist())


def test_another_process_can_be_given_the_model():
    model = adapted("block")
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=answer, args=(model, queue))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    torch.testing.assert_close(torch.tensor(queue.get()), logits(model))


@pytest.mark.parametrize("share", ["matrix", "global"])
def test_an_average_of_models_can_be_merged(share):
    model = adapted(share, tau="auto", tau_warmup_steps=1)
    average = AveragedModel(model)
    average.update_parameters(model)
    for *_, delta in deltas(model):
        with torch.no_grad():
            delta.tau.fill_(0.01)
            delta.B.add_(0.02)
    average.update_parameters(model)
    kept = deltas(average.module)
    for (*_, mine), (*_, its) in zip(kept, deltas(model), strict=True):
        assert torch.equal(mine.tau, its.tau)
        torch.testing.assert_close(mine.B, its.B - 0.01)
    assert len({id(delta.theta) for *_, delta in kept}) == (4 if share == "matrix" else 1)
    want = logits(average.module.eval())
    torch.testing.assert_close(logits(average.module.merge_and_unload()), want)
