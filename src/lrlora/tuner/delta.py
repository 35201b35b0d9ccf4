"""What is trained of one adapter on one layer: A, B, c and the knee tau, and the update made of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrlora import ops
from lrlora.method.nonlinearity import Form, initial_coefficients
from lrlora.method.rank import product_rms
from lrlora.tuner.config import LRLoraConfig
from lrlora.tuner.kept import KeptWeight


class LRLoraDelta(nn.Module):
    """A, B, c and tau of one adapter on one layer; calling it adds the update to a product, or gives the update.

    All of them stand on one module without children, and are only used inside its forward: the layout that DDP, FSDP1
    and FSDP2 can wrap. They stay in float32 whatever the base is stored in. `tau` is a buffer in the units of B A; inf
    means that it was not calibrated yet (tau = "auto"), and phi is the identity.

    For a stack of experts A, B and tau have the experts as a first axis, and so has c unless it is shared.
    """

    tau: Tensor
    c: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, rank: int, config: LRLoraConfig, experts: int | None = None
    ) -> None:
        super().__init__()
        self.phi: Form = config.phi
        self.num_basis = config.num_basis
        self.is_c_shared = config.phi != "sine" and config.share in ("type", "block", "global")
        self.is_knee_followed = False
        self._kappa: float | None = None
        self.is_in_base_precision = False
        self._kept = KeptWeight()
        stack = () if experts is None else (experts,)
        self.A = nn.Parameter(torch.empty(*stack, rank, in_features))
        self.B = nn.Parameter(torch.empty(*stack, out_features, rank))
        # Sine-LoRA divides by sqrt(in): without it sin(omega B A) would be of the size of W0 itself
        self.gain = 1 / math.sqrt(in_features) if config.phi == "sine" else 1.0
        if config.phi == "sine":
            self.c = None
            tau = 1 / config.omega
        else:
            c = initial_coefficients(config.num_basis, config.phi)
            if config.share == "matrix":
                c = c.repeat(*stack, 1) if stack else c
            if config.share == "frozen":
                self.register_buffer("c", c)
            else:
                self.c = nn.Parameter(c)
            tau = math.inf if config.tau == "auto" else float(config.tau) / math.sqrt(in_features)
        self.register_buffer("tau", torch.full(stack, tau, dtype=torch.float32))
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
    def weight(self) -> Tensor | None:
        """A, under the name by which PEFT's FSDP wrapping policy finds trainable leaf modules to shard on their own.

        None where c is shared: a parameter cannot lie in two shards, so that these stay in the unit around them.
        """
        return None if self.is_c_shared else self.A

    def forward(
        self,
        scale: float,
        x: Tensor | None = None,
        W0: Tensor | None = None,
        bias: Tensor | None = None,
        rows: Tensor | None = None,
        keep: bool = True,
    ) -> Tensor:
        """x (W0 + dW)^T + bias, or x dW^T where W0 is None; without x, [W0 +] dW itself, or some rows of dW.

        In evaluation the weight is kept for the next call, unless `keep` is off: for whoever only looks at dW.
        """
        if self.training and self._kappa is not None:
            self._set_knee(self._kappa)
            self._kappa = None
        scale = scale * self.gain
        is_kept = keep and not self.training and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if x is not None and is_kept:
            device = x.device.type
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
            return linear(x, self._kept_weight(W0, scale, dtype), None if bias is None else bias.to(dtype))
        if x is not None:
            return ops.adapted_linear(x, W0, bias, self.A, self.B, self.c, self.tau, scale, phi=self.phi)
        if rows is None and is_kept:
            return self._kept_weight(W0, scale, self.A.dtype if W0 is None else W0.dtype)
        if W0 is not None or self.A.ndim == 3:
            return self._weight(W0, scale, None)
        B = self.B if rows is None else self.B[rows]
        return ops.delta_weight(self.A, B, self.c, self.tau, scale, phi=self.phi)

    def _kept_weight(self, W0: Tensor | None, scale: float, dtype: torch.dtype) -> Tensor:
        def make() -> Tensor:
            if self.A.ndim == 3:
                return self._weight(W0, scale, dtype)
            return ops.adapted_weight(W0, self.A, self.B, self.c, self.tau, scale, phi=self.phi, dtype=dtype)

        return self._kept.get([W0, self.A, self.B, self.c, self.tau], (scale, dtype), make)

    def _weight(self, W0: Tensor | None, scale: float, dtype: torch.dtype | None) -> Tensor:
        """[W0 +] dW, differentiable in A, B and c; of a single matrix as of a stack of one."""
        A, B, tau = self.A, self.B, self.tau
        if is_single := A.ndim == 2:
            W0, A, B, tau = None if W0 is None else W0[None], A[None], B[None], tau[None]
        weights = ops.experts_weight(W0, A, B, self.c, tau, scale, phi=self.phi, dtype=dtype)
        return weights[0] if is_single else weights

    def train(self, mode: bool = True) -> LRLoraDelta:
        """Enter training or evaluation; a weight kept for evaluation is dropped either way.

        trl casts the adapters on quantised bases to bfloat16, in which c and small steps would freeze: they are put
        back into float32 before training begins.
        """
        self._kept.drop()
        if mode and not self.is_in_base_precision:
            for parameter in self.parameters():
                if parameter.dtype in (torch.float16, torch.bfloat16):
                    parameter.data, parameter.grad = parameter.data.float(), None
        return super().train(mode)

    def drop_kept_weight(self) -> None:
        """Free the weight kept for evaluation, if there is one."""
        self._kept.drop()

    def follow_knee(self, kappa: float | None) -> None:
        """Set tau = kappa RMS(B A) at the beginning of the next forward pass in training; None leaves it as it is.

        Not at once: where a library shards A and B (FSDP, ZeRO-3), they are whole inside the forward pass alone.
        """
        self.is_knee_followed = True
        self._kappa = kappa

    @torch.no_grad()
    def _set_knee(self, kappa: float) -> None:
        # left as it is while B A is still 0
        rms = product_rms(self.A, self.B)
        self.tau.copy_(torch.where(rms > 0, kappa * rms, self.tau))

    def extra_repr(self) -> str:
        """The line that print(model) shows."""
        (rank, in_features), out_features = self.A.shape[-2:], self.B.shape[-2]
        experts = f", experts={len(self.A)}" if self.A.ndim == 3 else ""
        return f"r={rank}, in={in_features}, out={out_features}{experts}, phi={self.phi}"
