"""An adapter on a base model without weights: the types, names and ties of its layers, at the memory of the adapter.

dW needs only A, B, c and tau, and the module's type says in which layout it is added. So the base is built on torch's
meta device, and only the adapter's file is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lrlora.errors import InputError
from lrlora.saved.adapter import AdapterFolder
from lrlora.saved.load import ADAPTER, bare_base, put_saved_on, settle
from lrlora.saved.updates import adapter_weights
from lrlora.tuner import deltas
from lrlora.tuner.experts import ParamWrapper
from lrlora.tuner.layer import LRLoraLayer


@dataclass(frozen=True)
class Skeleton:
    """A model whose base has no weights, with a real adapter on it.

    Args:
        model: the PeftModel; its base parameters are on the meta device.
        base: the model inside, whose config is the one to save with merged weights.
        modules: names of all modules that the base had before the adapter came.
        shapes: of the base's parameters and buffers, by their name in its state dict.
        ties: names of parameters that are one and the same.
    """

    model: Any
    base: Any
    modules: list[str]
    shapes: dict[str, tuple[int, ...]]
    ties: list[list[str]]

    def layers(self) -> list[AdaptedLayer]:
        """Every layer with LR-LoRA, in the order of the model."""
        found = []
        for name, layer, _, _ in deltas(self.model, ADAPTER):
            name = name.removeprefix("base_model.model.")
            found.append(AdaptedLayer(name, layer))
        return found

    def replaced(self) -> dict[str, Tensor]:
        """Parameters of the base that were trained whole (heads, biases), by their name in the base."""
        found = {}
        for name, value in self.model.state_dict().items():
            if value.device.type == "meta" or ".lrlora_" in name or ".original_module." in name:
                continue
            name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            found[name.replace(f".modules_to_save.{ADAPTER}", "")] = value
        return {name: value for name, value in found.items() if name in self.shapes}

    def tokens(self, saved: AdapterFolder) -> dict[str, tuple[list[int], Tensor]]:
        """Token vectors that were trained (`trainable_token_indices`), by the name of their table: rows and values."""
        found = {}
        for name, module in self.model.named_modules():
            held = getattr(module, "token_adapter", None)
            key = f"{name}.token_adapter.trainable_tokens_delta"
            # of tied tables one is in the file
            if held is not None and key in saved.shapes:
                with safe_open(adapter_weights(saved.folder), framework="pt") as file:
                    values = file.get_tensor(key)
                found[f"{name.removeprefix('base_model.model.')}.weight"] = (list(held.token_indices[ADAPTER]), values)
        return found

    def refuse_tied(self) -> None:
        """Refuse to change a weight that another module, which was not trained, holds as well.

        Raises:
            InputError: naming both.
        """
        with warnings.catch_warnings():
            # PEFT's own warning, of many lines, about what is refused here
            warnings.filterwarnings("ignore", "Model with `tie_word_embeddings")
            self.model.base_model._check_merge_allowed()
        replaced = self.replaced()
        for group in self.ties:
            trained = [name for name in group if name in replaced]
            if trained and len(trained) < len(group):
                others = ", ".join(name for name in group if name not in trained)
                raise InputError(
                    f"{trained[0]} was trained and {others} was not, but the base ties them into one weight: a merged "
                    "checkpoint would change both; load the base with tie_word_embeddings=False"
                )


@dataclass(frozen=True)
class AdaptedLayer:
    """One adapted layer.

    Args:
        name: of the module, or of the parameter where `target_parameters` chose it.
        layer: the layer itself.
    """

    name: str
    layer: LRLoraLayer

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of dW."""
        return self.layer.out_features, self.layer.in_features

    @property
    def weight_name(self) -> str:
        """Name of the parameter that dW is added to."""
        if isinstance(self.layer, ParamWrapper):
            return self.name
        # out_proj of an adapted nn.MultiheadAttention is inside its base_layer
        return f"{self.name}.{self.layer.parameter_name}".replace(".base_layer.", ".")

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """dW [out, in], or [experts, out, in], float32.

        Raises:
            InputError: it holds NaN or inf.
        """
        dW = self.layer.update_matrix(ADAPTER)
        if not torch.isfinite(dW).all():
            raise InputError(f"the update of {self.name} holds NaN or inf: this adapter is broken; train it again")
        return dW

    def update(self) -> Tensor:
        """dW in the layout of the weight, float32."""
        return self.layer.to_layout(self.matrix())


def skeleton(saved: AdapterFolder, methods: Sequence[str] = ("LRLORA",)) -> Skeleton:
    """Build the base without weights and put the adapter on it.

    Args:
        saved: the adapter.
        methods: PEFT's names of those that are taken.

    Raises:
        InputError: an adapter of another method, a base that is missing, is an adapter itself, or does not fit.
    """
    if saved.method not in methods:
        needed = " or ".join(methods)
        raise InputError(f"{saved.folder} is an adapter of type {saved.method}, not {needed}; use peft's own tools")
    saved.check_base()
    try:
        base = bare_base(saved.base, saved.auto_class, saved.options.plain, saved.head_options()).eval()
    except InputError as error:
        raise InputError(f"{error}{saved.base_advice}") from error
    settle(base, saved)
    modules = [name for name, _ in base.named_modules() if name]
    shapes = {name: tuple(value.shape) for name, value in base.state_dict().items()}
    holders: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    ties = [names for names in holders.values() if len(names) > 1]
    model = put_saved_on(base, saved, is_sparing=True)
    model.eval()
    built = Skeleton(model, base, modules, shapes, ties)
    for layer in built.layers():
        if any(p.device.type == "meta" for p in layer.layer.delta(ADAPTER).parameters()):
            raise InputError(f"{saved.folder} holds no tensors for {layer.name}, which the base {saved.base} has")
    return built
