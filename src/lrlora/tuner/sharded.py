"""Models whose parameters FSDP2 or ZeRO-3 has cut into shards: whole tensors of one layer at a time, and a phi for all.

A process holds a part of each parameter, and gets the whole one in the forward pass of its unit only. Everything here
that gathers must be called by every process, in the same order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn

from lrlora.method.carrier import Carrier
from lrlora.method.nonlinearity import Form
from lrlora.tuner.delta import LRLoraDelta
from lrlora.tuner.layer import LRLoraLayer
from lrlora.tuner.model import deltas
from lrlora.tuner.theta import RootPhi

Value = TypeVar("Value")
_PHI = "shared_phi"


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 or ZeRO-3 has cut parameters of a model into shards."""
    return any(hasattr(parameter, "placements") or hasattr(parameter, "ds_id") for parameter in model.parameters())


def size_of(parameter: Tensor) -> int:
    """How many entries the whole parameter has."""
    return getattr(parameter, "ds_numel", None) or parameter.numel()


@contextlib.contextmanager
def whole(*tensors: Tensor | None) -> Iterator[list[Tensor | None]]:
    """The whole of tensors that may be shards, while this lasts; those that are none are given back as they are."""
    of_zero = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    context: Any = contextlib.nullcontext()
    if of_zero:
        from deepspeed import zero  # pyright: ignore[reportMissingImports]

        context = zero.GatheredParameters(of_zero)
    held: tuple[Any, ...] = tensors
    with context, torch.no_grad():
        yield [tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor for tensor in held]


class WholeDelta(NamedTuple):
    """What a rank is measured on, with the names that LRLoraDelta gives it; its tensors are whole."""

    A: Tensor
    B: Tensor
    c: Tensor | None
    c_start: Tensor | None
    tau: Tensor
    phi: Form
    carrier: Carrier | None


@contextlib.contextmanager
def whole_layer(layer: LRLoraLayer, delta: LRLoraDelta) -> Iterator[tuple[Any, Tensor | None]]:
    """A delta and the base weight of its layer, whole while this lasts; no weight where it cannot be read."""
    base: Any = layer.get_base_layer()
    is_plain = layer.quantization_backend is None
    own = getattr(base, layer.parameter_name) if is_plain else None
    with whole(delta.A, delta.B, delta.theta, own) as (A, B, theta, weight):
        if A is delta.A and not hasattr(A, "ds_id"):
            yield delta, layer.float_weight() if layer.is_readable else None
            return
        assert A is not None and B is not None
        if not is_plain and layer.is_readable and not is_sharded(base):
            weight = layer.float_weight()
        c = delta.coefficients_of(theta)
        start = None if theta is None else delta.c_start
        # ZeRO-3 empties a parameter again when its gathering ends: nothing of it may be kept
        yield WholeDelta(A.detach(), B.detach(), c, start, delta.tau, delta.phi, delta.carrier), weight


def whole_state(model: Any) -> dict[str, Tensor]:
    """What PEFT saves of an adapter, out of the model's state: trained parameters and buffers, whole, on the CPU.

    Embeddings that are adapted are in it as well, since PEFT saves them. No frozen weight besides is gathered.
    """
    embeddings: list[Any] = [getattr(model, f"get_{which}_embeddings")() for which in ("input", "output")]
    adapted = [layer for layer in embeddings if hasattr(layer, "base_layer")]
    saved = {id(parameter) for layer in adapted for parameter in layer.parameters()}
    held = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for name, value in model.state_dict(keep_vars=True).items():
        parameter = held.get(name)
        if not isinstance(value, Tensor) or (
            parameter is not None and not parameter.requires_grad and id(parameter) not in saved
        ):
            continue
        with whole(value) as (tensor,):
            assert tensor is not None
            found[name] = tensor.detach().to("cpu", copy=True)
    return found


def put_phi_in_root(model: nn.Module) -> None:
    """Make a theta that layers share a parameter of the model itself, before FSDP2 makes its units.

    A parameter belongs to one unit. Layers of several units can share one that is whole in all of them: that of the
    root, around them all. The adapter is saved as before, with theta in every layer.

    Args:
        model: a PeftModel, which is the root.
    """
    shared = nn.ModuleList()
    for *_, delta in deltas(model):
        if delta.is_phi_shared and not delta.is_phi_in_root:
            shared.append(RootPhi(delta.sharers))
    if len(shared):
        model.add_module(_PHI, shared)


def agreed(value: Value) -> Value:
    """What the first process has, in every process."""
    said = [value]
    distributed.broadcast_object_list(said, src=0)
    return said[0]
