"""What lrlora uses of torch, transformers and trl beyond their documented API: their releases can break this file.

What it uses of PEFT is in `tuner/internals.py`; of accelerate it uses nothing private. Every function says in which
versions it was seen, and what breaks without it. "transformers 5.0.0 to 5.23.0" means that it ran with 5.23.0 and that
the source of 5.0.0 has the name.

The rest is used where it is: a function here would only repeat the name. A test compares this list with the code, and
fails on a name that is not in it.

    cli/flags.py           _actions                     argparse: removes the positional word from the flags of the help
    cli/flags.py           _action_groups               argparse: the same
    cli/flags.py           _group_actions               argparse: the same
    export/skeleton.py     _check_merge_allowed         PEFT: its check of tied weights, which our tuner overrides
    ops/linear.py          _base                        torch: whether an output is a view; ops/ is above this file
    ops/dispatch.py        _C                           torch: holds the next one; ops/ is above this file
    ops/dispatch.py        _are_functorch_transforms_active  torch: whether torch.func traces or batches tensors now
    training/sharding.py   _no_split_modules            transformers: the classes of a model's blocks
    training/trainer.py    _get_train_sampler           transformers: overridden; a resumed run has our order as well
    training/trainer.py    _save                        transformers: writes a checkpoint's adapter, of tensors given
    tuner/delta.py         _apply                       torch: overridden, to keep the adapter in float32 under .half()
    tuner/delta.py         _parameters                  torch: whether a theta is registered, and was not sharded away
    tuner/theta.py         _parameters                  torch: a shared theta is exchanged without registering it again
    tuner/hotswap.py       _check_target_module_exists  PEFT: whether a config means a module
    tuner/model.py         _check_target_module_exists  PEFT: the same
    tuner/model.py         _cast_adapter_dtype          PEFT: overridden, as the next six
    tuner/model.py         _check_merge_allowed
    tuner/model.py         _check_new_adapter_config
    tuner/model.py         _get_learnable_bias_state_dict
    tuner/model.py         _prepare_adapter_config
    tuner/model.py         _prepare_model
    tuner/model.py         _remove_adapter_name_from_key

Attributes without an underscore that no documentation promises, found by reading:

    export/merging/match.py  base_model_prefix          transformers: the prefix that a base's files may lack
    export/skeleton.py       token_adapter              PEFT: trained token vectors
    saved/pooling.py         pooler                     transformers: bypassed by --pooling mean
    training/trainer.py      model_accepts_loss_kwargs  transformers: set, so that classifiers divide their loss
    tuner/experts.py         is_transposed              transformers: a stack of experts kept as [experts, in, out]
    tuner/sharded.py         ds_id, ds_numel            DeepSpeed: a parameter that ZeRO-3 has cut, and its size
    tuner/snapshot.py        quant_state                bitsandbytes: the scales of a 4-bit weight
    tuner/snapshot.py        packing_format_for_cpu     bitsandbytes: whether a 4-bit weight is packed for the CPU
    tuner/types.py           embed_scale                transformers: an embedding that multiplies
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils.chat_template_utils import render_jinja_template


def is_tracing() -> bool:
    """Whether torch.compile, torch.export or another tracer runs now: its tensors must not be cached.

    Seen in torch 2.13.0. Without it the first trace would leave a fake tensor in the cache of c_start, and every later
    forward pass would fail.
    """
    return torch.compiler.is_compiling() or detect_fake_mode() is not None


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module runs hooks, its own or those of all modules.

    Seen in torch 2.13.0. Without it the forward pass that never calls the base layer would skip a user's hooks.
    """
    own = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(own) or bool(torch.nn.modules.module._has_any_global_hook())


def own_parameters(module: nn.Module) -> Mapping[str, nn.Parameter | None]:
    """The parameters registered in a module itself, None where one is registered as None.

    Seen in torch 2.13.0. Without it a weight that a parametrization computes would be taken for a parameter, and a
    merge into it would be undone.
    """
    return module._parameters


def convolve(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """A convolution layer with another weight, and without its bias: its stride, padding, dilation, groups.

    Seen in torch 2.13.0. Without it adapters on nn.Conv1d, Conv2d and Conv3d have no forward pass.
    """
    return layer._conv_forward(x, weight, None)  # pyright: ignore[reportCallIssue]


def norms(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """The L2 norm of every tensor, in one call for all.

    Seen in torch 2.13.0. Without it the check for NaN in the gradients starts a kernel per tensor.
    """
    return torch._foreach_norm(tensors)


def rendered_with_answers(tokenizer: Any, messages: list[dict[str, Any]], tools: Any, template: str) -> Any:
    """A chat as text, and the stretches of characters that its template marks as the assistant's: {% generation %}.

    Seen in transformers 5.23.0. Without it chats whose template changes earlier turns are learned in their last answer
    only.

    Returns:
        The text, and (first, one past the last) of every stretch.
    """
    (text,), (places,) = render_jinja_template(
        [messages],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return text, [tuple(place) for place in places]


def training_template(tokenizer: Any) -> str | None:
    """trl's version for training of a tokenizer's chat template; None without trl, or where it has none.

    Seen in trl 1.16.0. Without it chats whose template changes earlier turns are learned in their last answer only.
    """
    try:
        from trl.chat_template_utils import get_training_chat_template

        return get_training_chat_template(tokenizer)
    except (ImportError, ValueError):
        return None


@contextmanager
def labelled_logits_on_cpus() -> Iterator[None]:
    """Inside, a model that trl has given its own loss computes the logits of labelled tokens only, on CPUs as on GPUs.

    Seen in trl 1.16.0. Without it a training on CPUs computes the logits of every prompt token and of the padding,
    which the loss leaves out: of a small model with short answers they are a third of all arithmetic.
    """
    from trl.trainer import utils

    is_compact = getattr(utils, "_use_triton", None)
    if is_compact is None:
        yield
        return
    utils._use_triton = lambda device: device.type == "cpu" or is_compact(device)
    try:
        yield
    finally:
        utils._use_triton = is_compact


def saved_parts(base: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model in the parts, and under the names, that transformers saves them in.

    Seen in transformers 5.0.0 to 5.23.0. Without it the experts of a model whose weights transformers fuses while it
    loads can be merged in memory only.
    """
    return revert_weight_conversion(base, weights)


def from_config(auto_class: Any, config: Any, **options: Any) -> Any:
    """A model with random weights: of an Auto class, or of a class of one architecture, which has no public way.

    Seen in transformers 5.0.0 to 5.23.0. Without it adapters on models that no Auto class knows cannot be merged.
    """
    return (getattr(auto_class, "from_config", None) or auto_class._from_config)(config, **options)


def class_of_the_base(reference: str, name: str, revision: str | None) -> Any:
    """The class in the Python files that come with a base model, of one version of it: it runs that code.

    Seen in transformers 5.23.0. Without it the shapes of such a base would be those of the code of its main branch.
    """
    return get_class_from_dynamic_module(reference, name, revision=revision)


def is_adapter(loaded: Any) -> bool:
    """Whether `from_pretrained` was given an adapter, and put it on its base without saying so.

    Seen in transformers 5.0.0 to 5.23.0. Without it an adapter given as base would be trained on top of.
    """
    return getattr(loaded, "_hf_peft_config_loaded", False)


def has_causal_loss(base: Any) -> bool:
    """Whether a model's loss is transformers' cross-entropy of the next token.

    Seen in transformers 5.0.0 to 5.23.0. Without it logits are computed for every token, labelled or not.
    """
    return getattr(base, "loss_function", None) is ForCausalLMLoss


def trackers(names: list[str] | str) -> list[Callable[[], Any]]:
    """The callback classes of trackers ("tensorboard", "wandb", ...); ValueError for a name that does not exist.

    Seen in transformers 5.0.0 to 5.23.0. Without it a tracker that is not installed fails after the model is loaded.
    """
    # they import what trackers are installed
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    return get_reporting_integration_callbacks(names)


def in_batches_of_like_length(lengths: list[int], batch_size: int, generator: torch.Generator) -> list[int]:
    """The numbers of all rows in the order of transformers' `group_by_length`, which this generator draws.

    Seen in transformers 5.0.0 to 5.23.0. Without it a run resumed in a later epoch has another order of rows.
    """
    # not at the top: only trainings need what it imports
    from transformers.trainer_pt_utils import get_length_grouped_indices

    return get_length_grouped_indices(lengths, batch_size, generator=generator)


def is_causal_only(model_type: str | None) -> bool:
    """Whether transformers has a causal model of this type and none for masked tokens.

    Seen in transformers 5.0.0 to 5.23.0. Without it a study cannot tell what a base is whose config.json names no
    architecture.
    """
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
