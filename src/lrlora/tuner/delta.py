"""What is trained of one adapter on one layer: A, B and theta, from which c comes; and the update made of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrlora import ops
from lrlora.method.carrier import Carrier
from lrlora.method.nonlinearity import Form
from lrlora.method.rank import product_rms
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.kept import KeptUpdate
from lrlora.tuner.theta import Sharers, coefficients, start_on

MARK = ".lrlora_delta."
"""In the name of a saved tensor, between the layer and the part of its delta."""

_HALF = (torch.float16, torch.bfloat16)


class LRLoraDelta(nn.Module):
    """A, B, theta and tau of one adapter on one layer; calling it makes an output or a weight of them.

    The coefficients of phi are c = c_start + 10 theta, and theta starts at 0: an optimizer that knows nothing of phi
    moves c at ten times the rate of A and B, which c on its scale of 1 needs, and its weight decay pulls phi to where
    it started instead of to 0. An adapter of config_version 1 holds c itself in theta's place, and saves it as `c`.

    All of them belong to one module without children, and are only used inside its forward: the layout that DDP, FSDP1
    and FSDP2 can wrap. They stay in float32 when the model is cast. `tau`, the knee, is the scale at which phi bends: a
    buffer in the units of B A; inf means that it was not calibrated yet (tau = "auto"), and phi is the identity. It is
    no parameter, because it changes inside the forward pass. There FSDP and ZeRO-3 give copies of the parameters that
    they shard, and a write into a copy would be lost.

    With a carrier, `seed` is a buffer as well: the signs follow from it, and a layer keeps them under another name.

    A theta that layers share is one parameter, registered in each of them. Registering another one in one of them (by a
    loader that assigns, or a move away from the meta device) registers it in all.

    For a stack of experts A, B and tau have the experts as a first axis, and so has theta unless it is shared.
    """

    tau: Tensor
    theta: Tensor | None
    seed: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        config: LRLoraConfig,
        experts: int | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        self.phi: Form = config.phi
        self.config_version = config.config_version
        self._carrier = config.carrier_of(0)
        self._start = tuple(config.starting_coefficients())
        self.is_phi_shared = config.phi != "sine" and config.share in ("type", "block", "global")
        self.is_knee_followed = False
        self._kappa: float | None = None
        self.is_in_base_precision = False
        self.kept = KeptUpdate()
        self.sharers = Sharers()
        self.sharers.members.add(self)
        stack = () if experts is None else (experts,)
        self.A = nn.Parameter(torch.empty(*stack, rank, in_features))
        self.B = nn.Parameter(torch.empty(*stack, out_features, rank))
        # Sine-LoRA divides by sqrt(in): without it sin(omega B A) would be of the size of W0 itself
        self.gain = 1 / math.sqrt(in_features) if config.phi == "sine" else 1.0
        if config.phi == "sine":
            self.theta = None
        else:
            theta = torch.tensor(self._start) if self.config_version == 1 else torch.zeros(len(self._start))
            theta = theta.repeat(*stack, 1) if stack and config.share == "matrix" else theta
            if config.share == "frozen":
                self.register_buffer("theta", theta)
            else:
                self.theta = nn.Parameter(theta)
        tau = {"sine": 1 / config.omega, "linear": math.inf}.get(config.phi)
        if tau is None:
            tau = math.inf if config.tau == "auto" else float(config.tau) / math.sqrt(in_features)
        self.register_buffer("tau", torch.full(stack, tau, dtype=torch.float32))
        if self._carrier is not None:
            self.register_buffer("seed", torch.tensor(config.seed_of(name)))
        self.reset_factors(config.init_weights)

    def reset_factors(self, init_weights: bool | str) -> None:
        """A and B as the config asks: B = 0 unless init_weights is False."""
        # as matrices of rows of `in` (A) and of `r` (B) entries, which is what their scale depends on
        A, B = self.A.flatten(0, -2), self.B.flatten(0, -2)
        if init_weights == "gaussian":
            nn.init.normal_(A, std=1 / self.A.shape[-2])
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        if init_weights is False:
            nn.init.kaiming_uniform_(B, a=math.sqrt(5))
        else:
            nn.init.zeros_(self.B)

    @property
    def c(self) -> Tensor | None:
        """The coefficients of phi, [K] or [experts, K], differentiable in theta; None for phi = "sine"."""
        return self.coefficients_of(self.theta)

    @property
    def is_phi_in_root(self) -> bool:
        """Whether theta is a parameter of the model itself, see `put_phi_in_root`."""
        return "theta" in vars(self)

    @property
    def c_start(self) -> Tensor | None:
        """The coefficients at which training started, [K]; None for phi = "sine"."""
        return None if self.theta is None else start_on(self._start, self.theta.device)

    def coefficients_of(self, theta: Tensor | None) -> Tensor | None:
        """The coefficients that a theta stands for."""
        if theta is None or self.config_version == 1:
            return theta
        return coefficients(theta, self._start)

    @property
    def carrier(self) -> Carrier | None:
        """The carrier with this layer's signs; None without one."""
        return None if self._carrier is None else self._carrier._replace(seed=self.seed)

    def use_precision_of_base(self, dtype: torch.dtype) -> None:
        """Hold A, B and theta in the base's precision from now on: for who switches PEFT's autocast off."""
        self.is_in_base_precision = True
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    @property
    def weight(self) -> Tensor | None:
        """A, under the name by which PEFT's FSDP wrapping policy finds trainable leaf modules to shard on their own.

        None where phi is shared: a parameter cannot be in two shards. These modules stay in the unit around them.
        """
        return None if self.is_phi_shared else self.A

    def forward(self, make: Callable[..., Tensor], scale: float, *given: Tensor | None) -> Tensor:
        """What `output`, `update`, `uncached_update` or `adapted_weight` makes of the parameters; the way to call them.

        FSDP and ZeRO-3 gather the parameters while `forward` runs, and only then.

        Args:
            make: one of these four, as LRLoraDelta has them.
            scale: s of the adapter.
            given: the method's other arguments.
        """
        if self.training and self._kappa is not None:
            self._set_knee(self._kappa)
            self._kappa = None
        return make(self, scale * self.gain, *given)

    def output(self, scale: float, x: Tensor, W0: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """x (W0 + dW)^T + bias, or x dW^T + bias where W0 is None; of the cached dW where it is used."""
        if not self.kept.is_for(self.A, self.training, x.numel() // self.A.shape[-1]):
            how: Any = dict(phi=self.phi, carrier=self.carrier)
            return ops.adapted_linear(x, W0, bias, self.A, self.B, self.c, self.tau, scale, **how)
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        dW = self._kept_update(scale, dtype)
        return linear(x, dW if W0 is None else W0 + dW, None if bias is None else bias.to(dtype))

    def update(self, scale: float, rows: Tensor | None = None) -> Tensor:
        """dW [out, in], or [experts, out, in]; in evaluation the cached one. With `rows`, these rows of dW alone."""
        if rows is not None:
            how: Any = dict(phi=self.phi, carrier=self.carrier, rows=rows)
            return ops.delta_weight(self.A, self.B[rows], self.c, self.tau, scale, **how)
        if self.kept.is_for(self.A, self.training):
            return self._kept_update(scale, torch.promote_types(self.A.dtype, torch.float32))
        return self.uncached_update(scale)

    def uncached_update(self, scale: float) -> Tensor:
        """dW, without a look at the cache or a change of it."""
        how: Any = dict(phi=self.phi, carrier=self.carrier)
        if self.A.ndim == 3:
            return ops.experts_weight(None, self.A, self.B, self.c, self.tau, scale, **how)
        return ops.delta_weight(self.A, self.B, self.c, self.tau, scale, **how)

    def adapted_weight(self, scale: float, W0: Tensor) -> Tensor:
        """W0 + dW in the dtype of W0; in evaluation of the cached dW."""
        if self.A.ndim == 3 and not self.kept.is_for(self.A, self.training):
            how: Any = dict(phi=self.phi, carrier=self.carrier)
            return ops.experts_weight(W0, self.A, self.B, self.c, self.tau, scale, **how)
        return (W0 + self.update(scale)).to(W0.dtype)

    def _kept_update(self, scale: float, dtype: torch.dtype) -> Tensor:
        def make(sources: list[Tensor | None]) -> Tensor:
            A, B, theta, tau, seed = sources
            assert A is not None and B is not None and tau is not None
            carrier = None if self._carrier is None or seed is None else self._carrier._replace(seed=seed)
            make_weight = ops.experts_weight if A.ndim == 3 else ops.adapted_weight
            how: Any = dict(phi=self.phi, carrier=carrier, dtype=dtype)
            return make_weight(None, A, B, self.coefficients_of(theta), tau, scale, **how)

        seed = None if self._carrier is None else self.seed
        return self.kept.get([self.A, self.B, self.theta, self.tau, seed], scale, dtype, make)

    def share_phi_with(self, other: LRLoraDelta) -> None:
        """Hold the same parameter theta as another delta from now on."""
        self.sharers.members.discard(self)
        self.sharers = other.sharers
        self.sharers.members.add(self)
        self._parameters["theta"] = other._parameters["theta"]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter; a shared theta in all that share it."""
        super().register_parameter(name, param)
        if name == "theta" and param is not None:
            self._spread_theta()

    def _spread_theta(self) -> None:
        # absent until __init__ has come to it
        sharers: Sharers | None = vars(self).get("sharers")
        theta = self._parameters["theta"]
        if sharers is not None and theta is not None:
            sharers.take(theta)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Join the copies of those that shared theta with the original."""
        super().__setstate__(state)
        self.sharers.members.add(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LRLoraDelta:
        # what .to(), .half(), .cuda() and to_empty() call
        super()._apply(fn if _is_cast_by_deepspeed() else lambda tensor: self._cast(fn, tensor), recurse)
        if self._parameters.get("theta") is not None:
            self._spread_theta()
        return self

    def _cast(self, fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        """`fn` of a tensor, but in float32 where that is half precision, in which small steps of theta would freeze."""
        found = fn(tensor)
        if found.dtype not in _HALF or (self.is_in_base_precision and tensor is not self.tau):
            return found
        return (found if tensor.device.type == "meta" else tensor.to(found.device)).float()

    def train(self, mode: bool = True) -> LRLoraDelta:
        """Enter training or evaluation; an update cached for evaluation is freed either way.

        trl casts the adapters on quantised bases to bfloat16 through `.data`: they are put back into float32 before
        training begins.
        """
        self.kept.drop()
        if mode and not self.is_in_base_precision and not _is_cast_by_deepspeed():
            for parameter in self.parameters():
                if parameter.dtype in _HALF:
                    parameter.data, parameter.grad = parameter.data.float(), None
        return super().train(mode)

    def follow_knee(self, kappa: float | None) -> None:
        """Set tau = kappa RMS(B A) at the beginning of the next forward pass in training; None leaves it as it is.

        Where B A is still 0, tau becomes inf, which changes no update; kappa = inf changes only these. Tau is not set
        at once: where a library shards A and B (FSDP, ZeRO-3), they are whole only inside the forward pass.
        """
        self.is_knee_followed = True
        self._kappa = kappa

    @torch.no_grad()
    def _set_knee(self, kappa: float) -> None:
        rms = product_rms(self.A, self.B)
        moved = self.tau if math.isinf(kappa) else kappa * rms
        self.tau.copy_(torch.where(rms > 0, moved, math.inf))

    def extra_repr(self) -> str:
        """The line that print(model) shows."""
        (rank, in_features), out_features = self.A.shape[-2:], self.B.shape[-2]
        experts = f", experts={len(self.A)}" if self.A.ndim == 3 else ""
        carrier = ", carrier=signs" if self._carrier is not None else ""
        return f"r={rank}, in={in_features}, out={out_features}{experts}, phi={self.phi}{carrier}"


def _is_cast_by_deepspeed() -> bool:
    """Whether DeepSpeed trains here: it casts all of a model, and keeps float32 copies of its own."""
    deepspeed = sys.modules.get("deepspeed")
    return deepspeed is not None and deepspeed.comm.is_initialized()
