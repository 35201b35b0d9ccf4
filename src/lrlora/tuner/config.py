"""LRLoraConfig: what a user writes in place of LoraConfig."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig

from lrlora.errors import InputError
from lrlora.method.carrier import STARTS, Carrier, Start, starting_coefficients
from lrlora.method.nonlinearity import FORMS, Form, initial_coefficients
from lrlora.tuner.checks import check_choice, check_positive, check_whole, is_number
from lrlora.tuner.internals import PeftType
from lrlora.tuner.lora_fields import fields_of_lora, lora_with_fields_of, taking_fields_of_lora

CONFIG_VERSION = 2
SHARES = ("matrix", "type", "block", "global", "frozen")


def _field(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class LRLoraConfig(PeftConfig):
    """Configuration of LR-LoRA, dW = s phi(B A) with a learned elementwise phi (arXiv:2606.04325).

    The fields that LoraConfig has mean what they mean there; those of phi follow.

    Args:
        r: rank of the product B A, at least 1. The rank of dW = s phi(B A) is learned and may exceed it.
        lora_alpha: numerator of s; s = lora_alpha / r. None means 2 r.
        lora_dropout: dropout on the input of the update, in [0, 1).
        use_rslora: s = lora_alpha / sqrt(r) instead.
        target_modules: names, a regular expression, or "all-linear"; None: PEFT's LoRA targets of the architecture.
        exclude_modules: names or a regular expression of modules that are not adapted.
        target_parameters: names of parameters to adapt that no linear layer holds, such as the 3-D weights of experts
            ("mlp.experts.gate_up_proj"); every expert gets an update and, unless shared, a phi of its own.
        modules_to_save: other modules that are trained and saved whole, such as a new head.
        bias: which biases are trained: "none", "all" or "lrlora_only" ("lora_only" means the same).
        trainable_token_indices: tokens whose vectors are trained, of the input embeddings, or by name of the module.
        fan_in_fan_out: accepted as in LoraConfig, without effect: a layer's type gives the layout of its weight.
        layers_to_transform: indices of the blocks to adapt; None means all.
        layers_pattern: name of the list of blocks, needed where PEFT does not know it.
        rank_pattern: other ranks for some modules, {"q_proj": 16}.
        alpha_pattern: other alphas for some modules.
        init_weights: True: A Kaiming-uniform, B zero: dW = 0. "gaussian": A normal with deviation 1 / r,
            B zero. False: B random as well, for tests. `init_lora_weights` is another name for it.
        phi: "sinc" (the paper's basis), "residual" (ours: z + sincs, exactly LoRA until c moves), "sine" (fixed:
            Sine-LoRA, arXiv:2403.19243, s sin(omega B A) / sqrt(in)) or "linear" (ours: no knee; with a carrier only
            its two slopes are learned, without one it is LoRA with a learned scale per layer).
        num_basis: K, how many sincs: odd, at least 3. The middle one has no effect without a carrier.
        tau: knee, the size of an entry of B A at which phi bends, in units of 1 / sqrt(in), above 0; or "auto": phi is
            the identity during the warm-up, then tau follows kappa RMS(B A) of each layer until it is frozen for the
            last part of training. "auto" needs `lrlora.TauCallback` in the Trainer (`lrlora train` adds it), or
            `lrlora.follow_tau` in your own loop.
        kappa: knee in units of RMS(B A), for tau = "auto".
        tau_warmup_steps: optimizer steps as plain LoRA, for tau = "auto".
        tau_follow: fraction of the training steps after which tau no longer moves, in [0, 1], for tau = "auto"; 0 sets
            it once, after the warm-up.
        share: which layers share one phi: "matrix" (none), "type" (the same kind of layer in all blocks), "block",
            "global"; "frozen": none, and c is not trained.
        omega: frequency of phi = "sine".
        carrier: "signs" (ours) uses phi at +offset and -offset, by a pseudo-random sign for every entry: c can then
            give the update a rank above r at first order (`lrlora.method.carrier`); "none" uses it at 0.
        carrier_offset: in units of tau, above 0; without effect on phi = "linear".
        carrier_start: where training starts: "open" is an update whose rank is not bounded by r, "closed" LoRA at first
            order (which tau = "auto" needs), "half" both in equal parts.
        carrier_seed: of the signs; every layer makes a seed of its own from it and its name, and saves that.
        config_version: version of these fields, written by lrlora.

    Raises:
        InputError: (a ValueError) a field outside its range, named with what was got and what is needed.

    Example:
        >>> LRLoraConfig(r=8, target_modules="all-linear").scale_of(rank=8, alpha=16)
        2.0
    """

    r: int = _field(8, "rank of the product B A; that of the update is learned")
    lora_alpha: float | None = _field(None, "s = lora_alpha / r; 2 r if left out")
    lora_dropout: float = _field(0.0, "dropout on the input of the update")
    use_rslora: bool = _field(False, "s = lora_alpha / sqrt(r)")
    target_modules: list[str] | str | None = _field(
        None, "names of modules to adapt, or all-linear; one word such as '.*query' is a regular expression"
    )
    exclude_modules: list[str] | str | None = _field(None, "names of modules not to adapt, or a regular expression")
    target_parameters: list[str] | None = _field(
        None, "names of parameters to adapt that no linear layer has: experts' weights"
    )
    modules_to_save: list[str] | None = _field(None, "names of modules trained and saved whole, besides a new head")
    bias: Literal["none", "all", "lrlora_only"] = _field("none", "which biases are trained")
    layers_to_transform: list[int] | int | None = _field(None, "indices of the blocks to adapt; all if left out")
    layers_pattern: list[str] | str | None = _field(None, "name of the list of blocks, where PEFT does not know it")
    rank_pattern: dict = field(
        default_factory=dict, metadata={"help": "other ranks of some modules: '{\"q_proj\": 16}'"}
    )
    alpha_pattern: dict = field(default_factory=dict, metadata={"help": "other lora_alphas of some modules"})
    trainable_token_indices: list[int] | dict[str, list[int]] | None = _field(
        None, "numbers of tokens whose embeddings are trained: '[5, 7]'"
    )
    fan_in_fan_out: bool = _field(False, "without effect: the layer's type says it")
    init_weights: bool | Literal["gaussian"] = _field(True, "how A starts: true is Kaiming-uniform")
    init_lora_weights: bool | Literal["gaussian"] | None = _field(None, "another name for init_weights")
    phi: Form = _field("sinc", "nonlinearity: the paper's sinc basis, z + sincs, fixed sine, or only its slopes")
    num_basis: int = _field(11, "K, number of sincs, odd")
    tau: float | Literal["auto"] = _field(0.05, "knee, where phi bends, in units of 1/sqrt(in), or auto")
    kappa: float = _field(1.0, "knee in units of RMS(B A), for tau auto")
    tau_warmup_steps: int = _field(20, "steps as plain LoRA, for tau auto")
    tau_follow: float = _field(0.7, "fraction of training after which tau is frozen, for tau auto")
    share: Literal["matrix", "type", "block", "global", "frozen"] = _field(
        "matrix", "which layers share one phi; frozen: phi is not trained"
    )
    omega: float = _field(200.0, "frequency of phi sine")
    carrier: Literal["none", "signs"] = _field("none", "signs let the update have a rank above r at first order")
    carrier_offset: float = _field(0.5, "where the carrier uses phi, in units of tau")
    carrier_start: Start = _field("open", "where the gate starts: closed is LoRA")
    carrier_seed: int = _field(0, "of the carrier's signs")
    config_version: int = _field(CONFIG_VERSION, "version of these fields")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("LRLORA")
        self._take_names_of_lora()
        if self.config_version > CONFIG_VERSION:
            raise InputError(
                f"this adapter has config_version {self.config_version}, this lrlora reads up to {CONFIG_VERSION}; "
                "upgrade it: pip install -U lrlora"
            )
        self._check_lora_fields()
        self._check_phi_fields()
        self._check_carrier_fields()
        self._check_placement()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def from_lora(cls, config: LoraConfig, **fields: Any) -> LRLoraConfig:
        """The configuration of LR-LoRA with the rank, scale, placement and the rest of a LoraConfig.

        Args:
            config: of plain LoRA.
            fields: of LR-LoRA, such as tau.

        Raises:
            InputError: the config asks for something that LR-LoRA has not, by name.

        Example:
            >>> import peft
            >>> LRLoraConfig.from_lora(peft.LoraConfig(r=4, bias="lora_only"), tau=0.1).bias
            'lrlora_only'
        """
        return cls(**{**fields_of_lora(config), **fields})

    def to_lora(self) -> LoraConfig:
        """LoraConfig with the rank, scale, placement and the rest of this one, without phi.

        Example:
            >>> LRLoraConfig(r=4, rank_pattern={"query": 8}, target_modules=["query", "value"]).to_lora().alpha_pattern
            {'query': 16.0}
        """
        return lora_with_fields_of(self)

    def _take_names_of_lora(self) -> None:
        """Bring LoraConfig's other names and values into ours.

        Raises:
            InputError: init_weights and init_lora_weights that contradict each other.
        """
        if self.bias == "lora_only":
            self.bias = "lrlora_only"
        if self.init_lora_weights is not None:
            if self.init_weights is not True and self.init_weights != self.init_lora_weights:
                raise InputError(
                    f"init_weights and init_lora_weights are two names for one field, got {self.init_weights!r} and "
                    f"{self.init_lora_weights!r}; pass one of them"
                )
            self.init_weights, self.init_lora_weights = self.init_lora_weights, None

    def to_dict(self) -> dict[str, Any]:
        """The fields, with sets of names as sorted lists: PEFT writes a set in an order of its own in every process."""
        fields = super().to_dict()
        return {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}

    def alpha_of(self, rank: int) -> float:
        """lora_alpha, or its default for a module of this rank."""
        return 2.0 * rank if self.lora_alpha is None else self.lora_alpha

    def scale_of(self, rank: int, alpha: float) -> float:
        """s = alpha / rank, or alpha / sqrt(rank) with rsLoRA."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _check_lora_fields(self) -> None:
        check_whole(self.r, "r", 1, "pass r=8, for example")
        for name, pattern in (("rank_pattern", self.rank_pattern), ("alpha_pattern", self.alpha_pattern)):
            if not isinstance(pattern, dict):
                raise InputError(f"{name} must be a dictionary such as {{'q_proj': 16}}, got {pattern!r}")
        for module, rank in self.rank_pattern.items():
            check_whole(rank, f"rank_pattern[{module!r}]", 1, "exclude the module with exclude_modules to leave it out")
        if self.lora_alpha is not None:
            check_positive(self.lora_alpha, "lora_alpha")
        for module, alpha in self.alpha_pattern.items():
            check_positive(alpha, f"alpha_pattern[{module!r}]")
        if not is_number(self.lora_dropout) or not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout must be in [0, 1), got {self.lora_dropout!r}")
        check_choice(self.bias, "bias", ("none", "all", "lrlora_only"))
        if not isinstance(self.init_weights, bool) and self.init_weights != "gaussian":
            raise InputError(
                f"init_weights must be True, False or 'gaussian', got {self.init_weights!r}: A and B start at random "
                "and at 0, because dW = 0 is where phi is known; leave it out"
            )

        tokens = self.trainable_token_indices
        if tokens is not None and not isinstance(tokens, list | dict):
            raise InputError(f"trainable_token_indices must be a list of numbers, or lists by module, got {tokens!r}")

    def _check_phi_fields(self) -> None:
        check_choice(self.phi, "phi", FORMS)
        check_choice(self.share, "share", SHARES)
        check_whole(self.num_basis, "num_basis", 3, "pass num_basis=11, for example")
        if self.num_basis % 2 == 0:
            raise InputError(
                f"num_basis must be odd (K = 2M + 1, a grid around 0), got {self.num_basis}; "
                f"pass num_basis={self.num_basis + 1}"
            )
        if isinstance(self.tau, str):
            if self.tau != "auto":
                raise InputError(f"tau must be a number above 0, in units of 1/sqrt(in), or 'auto', got {self.tau!r}")
            if self.phi in ("sine", "linear"):
                advice = "set omega instead" if self.phi == "sine" else "leave tau out"
                raise InputError(f"tau='auto' needs a phi with a knee, got phi={self.phi!r}; {advice}")
        else:
            check_positive(self.tau, "tau")
        check_positive(self.kappa, "kappa")
        check_positive(self.omega, "omega")
        check_whole(self.tau_warmup_steps, "tau_warmup_steps", 0, "0 starts with phi at once")
        if not is_number(self.tau_follow) or not 0 <= self.tau_follow <= 1:
            raise InputError(f"tau_follow must be in [0, 1], a fraction of the training steps, got {self.tau_follow!r}")

    def _check_carrier_fields(self) -> None:
        check_choice(self.carrier, "carrier", ("none", "signs"))
        check_choice(self.carrier_start, "carrier_start", STARTS)
        check_positive(self.carrier_offset, "carrier_offset")
        check_whole(self.carrier_seed, "carrier_seed", 0, "pass 0, for example")
        if self.carrier == "none":
            return
        if self.config_version < 2:
            raise InputError(
                f"carrier={self.carrier!r} needs config_version 2, got {self.config_version}; leave it out"
            )
        if self.phi == "sine":
            raise InputError(
                "phi='sine' has no coefficients that could learn a gate; pass carrier='none' or phi='sinc'"
            )
        if self.tau == "auto" and self.carrier_start != "closed":
            raise InputError(
                "tau='auto' trains as plain LoRA during the warm-up, which is where carrier_start='closed' starts; got "
                f"carrier_start={self.carrier_start!r}; pass 'closed', or a number for tau"
            )
        try:
            self.starting_coefficients()
        except ValueError as error:
            raise InputError(f"carrier_offset={self.carrier_offset!r}: {error}") from error

    def starting_coefficients(self) -> list[float]:
        """c at which training starts; empty for phi = "sine", which has none."""
        if self.phi == "sine":
            return []
        # plain numbers on the CPU: the model may be made under another default device
        with torch.device("cpu"):
            if self.carrier == "none":
                return initial_coefficients(self.num_basis, self.phi).tolist()
            return starting_coefficients(self.num_basis, self.phi, self.carrier_offset, self.carrier_start).tolist()

    def carrier_of(self, seed: int | torch.Tensor) -> Carrier | None:
        """The carrier of a layer with this seed; None without one."""
        return None if self.carrier == "none" else Carrier(float(self.carrier_offset), seed)

    def seed_of(self, name: str) -> int:
        """The seed of a layer's signs, from 0 below 2^32, by `carrier_seed` and the layer's name."""
        return int.from_bytes(hashlib.sha256(f"{self.carrier_seed}:{name}".encode()).digest()[:4], "little")

    def _check_placement(self) -> None:
        if self.layers_pattern and self.layers_to_transform is None:
            raise InputError("layers_pattern needs layers_to_transform, got None; pass the indices of the blocks")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise InputError(
                "layers_to_transform needs target_modules as a list of names, got the string "
                f"{self.target_modules!r}; write the blocks into the regular expression instead"
            )


LRLoraConfig.__init__ = taking_fields_of_lora(LRLoraConfig.__init__)
