"""The tuner that PEFT drives: finds the target modules, wraps them, and decides which of them share one phi."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from lrlora.errors import InputError
from lrlora.tuner.attention import OUT, MultiheadAttention
from lrlora.tuner.checks import check_tensors
from lrlora.tuner.delta import MARK, LRLoraDelta
from lrlora.tuner.experts import ParamWrapper, wrap_parameter
from lrlora.tuner.internals import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    BaseTuner,
    get_pattern_key,
    tuner_key_prefixes,
)
from lrlora.tuner.layer import LRLoraLayer
from lrlora.tuner.mixed import adapters_by_row
from lrlora.tuner.names import block_of, type_of
from lrlora.tuner.targets import name_all_linear, wrap
from lrlora.tuner.theta import from_root


class LRLoraModel(BaseTuner):
    """LR-LoRA on a model; made by `peft.get_peft_model(model, LRLoraConfig(...))`, not by hand."""

    prefix = "lrlora_"
    tuner_layer_cls = LRLoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(parent, MultiheadAttention):
            # its out_proj, which is adapted with it
            return
        rank, alpha = self.rank_and_alpha(peft_config, current_key)
        if isinstance(target, LRLoraLayer) and parameter_name in (None, target.parameter_name):
            layer = target
        elif parameter_name is not None:
            layer = wrap_parameter(current_key, target, parameter_name)
        else:
            layer = wrap(current_key, target, parent, self.model)
        layer.update_layer(adapter_name, rank, alpha, peft_config, current_key)
        if layer is not target:
            layer.set_adapter([name for name in self.active_adapters if name in layer.lrlora_delta])
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    @staticmethod
    def rank_and_alpha(config: Any, key: str) -> tuple[int, float]:
        """r and alpha of the module `key`, by rank_pattern and alpha_pattern; out_proj has those of its attention."""
        key = key.removesuffix(OUT)
        rank = config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), key), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), key), config.alpha_of(rank))
        return rank, alpha

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT would move `weight` over, which a module of experts does not have; our layers hold the module itself
        setattr(parent, child_name, new_module)

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        super()._prepare_model(peft_config, model)
        name_all_linear(peft_config, model, self._check_target_module_exists)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        if peft_config.target_modules is None and peft_config.target_parameters:
            # the architecture's usual modules as well, where PEFT knows them: as LoraConfig does
            known = self.target_module_mapping.get(model_config["model_type"], [])
            peft_config.target_modules = known if isinstance(known, str) else set(known)
            return peft_config
        return super()._prepare_adapter_config(peft_config, model_config)

    def _check_new_adapter_config(self, config: Any) -> None:
        super()._check_new_adapter_config(config)
        wanted = set(config.target_parameters or ())
        for name, other in self.peft_config.items():
            others = set(getattr(other, "target_parameters", None) or ())
            if other is not config and wanted and others and wanted != others:
                raise InputError(
                    "all adapters must target the same set of parameters, because the names in a saved adapter follow "
                    f"from it; got target_parameters {sorted(wanted)}, and {sorted(others)} in adapter {name!r}"
                )

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        # adapters are made in float32; only a user who switches PEFT's autocast off gets them in the base's precision
        if autocast_adapter_dtype:
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
            return
        for _, layer, _, delta in deltas(self.model, adapter_name):
            delta.use_precision_of_base(layer.float_weight().dtype)

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        context = contextlib.nullcontext()
        if names is not None:
            context = adapters_by_row(self.model, names, kwargs.get("num_beams"))
        with context:
            yield

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Wrap the target modules, then tie the coefficients of those that share one phi."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self.tie_coefficients(model, adapter_name)
        self._take_over_buffers(model, adapter_name)

    def tie_coefficients(self, model: nn.Module, adapter_name: str) -> None:
        """Let the layers of one group (config.share) hold the same parameter theta."""
        config: Any = self.peft_config[adapter_name]
        first_of_group: dict[object, LRLoraDelta] = {}
        for name, layer in model.named_modules():
            if not isinstance(layer, LRLoraLayer) or adapter_name not in layer.lrlora_delta:
                continue
            delta = layer.delta(adapter_name)
            if delta.is_phi_shared:
                group = {"type": type_of(name), "block": block_of(name), "global": None}[config.share]
                delta.share_phi_with(first_of_group.setdefault(group, delta))

    def _take_over_buffers(self, model: nn.Module, adapter_name: str) -> None:
        """Let a new adapter begin with tau, and with a frozen theta, of an adapter whose phi is configured alike.

        trl makes its reference model as a second adapter, into which it copies the first one's parameters by name.
        Buffers would be missing there, because they are no parameters. A fresh update of 0 stays 0 with any phi.
        """
        config: Any = self.peft_config[adapter_name]
        others = [name for name in self.peft_config if name != adapter_name and _have_one_phi(self, name, config)]
        # the same config object first: trl passes the same one
        others.sort(key=lambda name: self.peft_config[name] is not config)
        for _, layer, _, delta in deltas(model, adapter_name):
            source = next((layer.delta(name) for name in others if name in layer.lrlora_delta), None)
            if source is None:
                continue
            for mine, its in zip(delta.buffers(), source.buffers(), strict=True):
                if "meta" not in (mine.device.type, its.device.type):
                    mine.copy_(its)

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        holders: dict[int, list[str]] = {}
        for name, module in self.model.named_modules():
            for parameter in module.parameters(recurse=False):
                holders.setdefault(id(parameter), []).append(name)
        name_of = {id(module): name for name, module in self.model.named_modules()}
        for name, layer, _, _ in deltas(self.model):
            weight = getattr(layer.get_base_layer(), layer.parameter_name, None)
            others = [n for n in holders.get(id(weight), []) if n != name_of[id(layer.get_base_layer())]]
            if others:
                raise InputError(
                    f"merging {name} would change {', '.join(others)} as well: both hold the same weight; load the "
                    "base with tie_word_embeddings=False, or use the adapter without merging"
                )

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: no A, B and theta give the sum of two updates.

        Raises:
            InputError: always; it says what to do instead.
        """
        raise InputError(
            "add_weighted_adapter cannot combine LR-LoRA adapters: a sum of phi(B A) is not phi of another product; "
            "activate several adapters together with model.base_model.set_adapter([...]), merge them one after "
            "another, or convert each with peft's convert_to_lora and combine those"
        )

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        prefixes = tuner_key_prefixes(model)
        selected = {key: value for key, value in state_dict.items() if _is_under(key, prefixes)}
        selected |= from_root(model, adapter_name, state_dict)
        if config.share in _SHARING:
            # safetensors, as transformers calls it, refuses tensors that share their memory
            selected = {key: value.clone() if key.endswith(".theta") else value for key, value in selected.items()}
        selected = {_saved_key(key, config): value for key, value in selected.items()}
        selected.update(cls._get_learnable_bias_state_dict(model, state_dict, config))
        if config.tau == "auto" and _is_knee_forgotten(model, adapter_name):
            warnings.warn(
                'tau="auto" was never calibrated: phi is still the identity and this adapter is plain LoRA. Add '
                "lrlora.TauCallback() to the Trainer's callbacks, or call lrlora.follow_tau in your own loop.",
                stacklevel=2,
            )
        return selected

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        _check_version(state_dict, config)
        prefixes = tuner_key_prefixes(model, adapter_name=adapter_name)
        shapes, model_key_of = {}, {}
        for key, value in model.state_dict().items():
            if _is_under(key, prefixes):
                saved_key = _saved_key(cls._remove_adapter_name_from_key(key, adapter_name), config)
                shapes[key] = tuple(value.shape)
                model_key_of[saved_key] = key
                # layers injected without a PeftModel around them have no such prefix, but files always do
                model_key_of.setdefault(f"base_model.model.{saved_key}", key)
        remapped = {model_key_of.get(key, key): value for key, value in state_dict.items()}
        check_tensors(shapes, remapped, MARK)
        return remapped


class Placed(NamedTuple):
    """The update of one adapter, and its place in a model.

    Args:
        name: of the adapted module, or of the adapted parameter where `target_parameters` chose it.
        layer: the adapted layer.
        adapter: name of the adapter.
        delta: A, B, theta and tau.
    """

    name: str
    layer: LRLoraLayer
    adapter: str
    delta: LRLoraDelta


def deltas(model: nn.Module, adapter_name: str | None = None) -> list[Placed]:
    """Every trained update of a model, in its order; of one adapter where its name is given.

    Example:
        for name, layer, adapter, delta in lrlora.deltas(model):
            print(name, delta.A.shape, delta.c)
    """
    found = []
    for name, layer in model.named_modules():
        if isinstance(layer, LRLoraLayer):
            if isinstance(layer, ParamWrapper):
                name = f"{name.replace('.base_layer', '')}.{layer.parameter_name}"
            # a delta may be inside a wrapper of FSDP or torch.compile, so no isinstance here
            found += [
                Placed(name, layer, a, cast(LRLoraDelta, d))
                for a, d in layer.lrlora_delta.items()
                if adapter_name in (None, a)
            ]
    return found


_SHARING = ("type", "block", "global")
_OF_PHI = (
    "phi", "num_basis", "tau", "kappa", "share", "omega", "carrier", "carrier_offset", "carrier_start", "carrier_seed",
    "config_version",
)  # fmt: skip


def _saved_key(key: str, config: Any) -> str:
    """The name of a tensor in a file: an adapter of config_version 1 saves c itself, and as such."""
    return f"{key.removesuffix('.theta')}.c" if config.config_version == 1 and key.endswith(".theta") else key


def _have_one_phi(tuner: LRLoraModel, name: str, config: Any) -> bool:
    other = tuner.peft_config[name]
    return all(getattr(other, field, None) == getattr(config, field) for field in _OF_PHI)


def _is_knee_forgotten(model: nn.Module, adapter_name: str) -> bool:
    found = [delta for *_, delta in deltas(model, adapter_name) if delta.tau.device.type != "meta"]
    return bool(found) and not any(delta.is_knee_followed or delta.tau.isfinite().any() for delta in found)


def _is_under(key: str, prefixes: set[str]) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:n]) in prefixes for n in range(1, len(parts) + 1))


def _check_version(state_dict: dict[str, Tensor], config: Any) -> None:
    """Refuse the tensors of an adapter of one version for a model whose adapter has the other: c would be dropped."""
    other = "theta" if config.config_version == 1 else "c"
    wrong = next((key for key in state_dict if key.endswith(f"{MARK}{other}")), None)
    if wrong is not None:
        held, needed = (2, 1) if other == "theta" else (1, 2)
        raise InputError(
            f"{wrong} is of an adapter with config_version {held}, and the adapter in the model has {needed}; load the "
            "saved one with PeftModel.from_pretrained, which makes an adapter of its own version"
        )
