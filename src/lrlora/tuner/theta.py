"""theta, which is trained in the place of phi's coefficients, c = c_start + 10 theta; and the layers that share one."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from lrlora.internals import is_tracing

GAIN = 10.0
"""dc / dtheta: under Adam, how many times faster c moves than A and B at the same rate."""


def coefficients(theta: Tensor, start: tuple[float, ...]) -> Tensor:
    """c [K] or [experts, K], differentiable in theta."""
    return torch.add(start_on(start, theta.device), theta, alpha=GAIN)


def start_on(start: tuple[float, ...], device: torch.device) -> Tensor:
    """c_start on a device; the same tensor in every call, since a copy to a GPU makes the host wait for it."""
    # a tracer's fake tensors must not be cached
    if device.type == "meta" or is_tracing():
        return torch.tensor(start, dtype=torch.float32, device=device)
    return _start_on(start, device)


@functools.cache
def _start_on(start: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(start, dtype=torch.float32, device=device)


class Sharers:
    """The modules that hold one theta. A copy or a file begins empty, and each copied module joins it again."""

    def __init__(self) -> None:
        self.members: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __reduce__(self) -> tuple[type[Sharers], tuple[()]]:
        return Sharers, ()

    def take(self, theta: nn.Parameter) -> None:
        """Register this theta in every module that has one."""
        for member in list(self.members):
            if "theta" in vars(member):
                vars(member)["theta"] = theta
            elif member._parameters.get("theta") is not None:
                member._parameters["theta"] = theta

    def leave(self) -> nn.Parameter:
        """Take theta out of the parameters of every module; each still has it, as an attribute."""
        thetas = [member._parameters.pop("theta") for member in list(self.members)]
        theta = thetas[0]
        assert theta is not None and all(other is theta for other in thetas)
        for member in list(self.members):
            vars(member)["theta"] = theta
        return theta


class RootPhi(nn.Module):
    """One theta, as a parameter of FSDP2's root unit alone; the layers that share it are in other units.

    FSDP2 registers the whole theta here when the forward pass of the root begins, and a shard when it ends: the layers
    get each as well.
    """

    def __init__(self, sharers: Sharers) -> None:
        super().__init__()
        self._sharers = sharers
        self.theta = sharers.leave()

    def __setattr__(self, name: str, value: Any) -> None:
        # FSDP2 writes past register_parameter in modules that have no __setattr__ of their own
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register theta, and give it to the layers."""
        super().register_parameter(name, param)
        if param is not None:
            self._sharers.take(param)


def from_root(model: nn.Module, adapter_name: str, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """theta of every layer that has it from a `RootPhi`, under the name of the layer, out of a model's state."""
    named = list(model.named_modules())
    of_root = {id(m.theta): state_dict[f"{name}.theta"] for name, m in named if isinstance(m, RootPhi)}
    return {
        f"{name}.theta": of_root[id(vars(module)["theta"])]
        for name, module in named
        if of_root and name.endswith(f".lrlora_delta.{adapter_name}") and "theta" in vars(module)
    }
