"""What the head of an encoder reads: the token that its architecture reads, or the mean over a row's tokens.

Of transformers' classes below only ModernBERT's has this as a setting (`classifier_pooling`). In the others a hook
on the backbone replaces every token by the mean: the head reads the mean at any position.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from lrlora.errors import InputError
from lrlora.files import read_json
from lrlora.saved.local import local_model

Pooling = Literal["auto", "mean", "cls"]
_POOLINGS = ("auto", "mean", "cls")
_IN_CONFIG = "classifier_pooling"
# the architectures that the tests cover; in others padding leaks into the tokens (ConvBERT, MobileBERT, FNet, CANINE)
_ENCODERS = (
    "albert", "bert", "big_bird", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra",
    "ernie", "esm", "flaubert", "gte", "ibert", "jina_embeddings_v3", "layoutlm", "longformer", "megatron-bert",
    "modernbert", "mpnet", "nomic_bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet",
)  # fmt: skip


def check_pooling(pooling: str, whose: str = "pooling") -> None:
    """Raise InputError where this is no pooling."""
    if pooling not in _POOLINGS:
        raise InputError(f"{whose} must be one of {', '.join(_POOLINGS)}, got {pooling!r}")


def set_pooling(base: Any, pooling: Pooling) -> None:
    """Let the head of a classifier read the mean of the last hidden states over the tokens that are no padding.

    The pooler of the backbone, such as BertPooler, is bypassed and taken out: it must not be adapted.

    Args:
        base: a model for sequence classification without an adapter; changed in place.
        pooling: "mean"; "cls", the token for classification; "auto", what the model reads anyway.

    Raises:
        InputError: an architecture for which it is not known to work, by name.
    """
    if pooling == "auto":
        return
    kind, name = base.config.model_type, type(base).__name__
    if kind not in _ENCODERS or not name.endswith("ForSequenceClassification"):
        raise InputError(
            f"{name} cannot be read with --pooling {pooling}, which works for sequence classification with "
            f"{', '.join(_ENCODERS)}; leave --pooling out"
        )
    if hasattr(base.config, _IN_CONFIG):
        setattr(base.config, _IN_CONFIG, pooling)
    elif pooling == "mean":
        _pool(base, name)


def own_pooling(described: dict[str, Any]) -> str:
    """What an encoder reads as its config.json describes it."""
    return described.get(_IN_CONFIG, "cls")


def why_not_plain(pooling: Pooling, described: dict[str, Any]) -> str | None:
    """Why a folder for transformers without lrlora cannot hold a classifier of this pooling; None where it can.

    Args:
        pooling: that it was trained with.
        described: config.json of its base.
    """
    if pooling != "mean" or _IN_CONFIG in described:
        return None
    return (
        f"it was trained with --pooling mean, and transformers' class for {described.get('model_type')} has no such "
        "setting: a merged model would read another pooling in silence"
    )


def said_of_pooling(base: Any, name: str) -> str | None:
    """What to tell where sentence-transformers' file next to a model says mean pooling, and its head has another.

    Args:
        base: the classifier as it was loaded.
        name: its folder, or its name on the hub.
    """
    if base.config.model_type not in _ENCODERS or own_pooling(base.config.to_dict()) == "mean":
        return None
    if not any(_is_mean(read_json(file)) for folder in local_model(name) for file in _pooling_files(folder)):
        return None
    return f"{name} was trained with mean pooling, and its head reads one token; --pooling mean gives it the mean"


def _pooling_files(folder: Path) -> list[Path]:
    # a folder of a model, or the hub's cache of one
    return sorted([*folder.glob("*_Pooling/config.json"), *folder.glob("snapshots/*/*_Pooling/config.json")])


def _is_mean(described: Any) -> bool:
    if not isinstance(described, dict):
        return False
    return described.get("pooling_mode_mean_tokens") is True or described.get("pooling_mode") == "mean"


def _pool(base: Any, name: str) -> None:
    backbone = base.base_model
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = torch.nn.Identity()
        gone = f"{base.base_model_prefix}.pooler."
        # only a model that was loaded from files has them
        new = getattr(base, "new_parameters", [])
        base.new_parameters = [parameter for parameter in new if not parameter.startswith(gone)]
    names = tuple(inspect.signature(backbone.forward).parameters)
    # no closure: a model with one could not be pickled
    backbone.register_forward_hook(functools.partial(_pooled, names, name), with_kwargs=True)


def _pooled(names: tuple[str, ...], name: str, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
    """The hook: `names` are those of the arguments of the backbone, `name` is that of the classifier."""
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return _with_mean(output, given.get("attention_mask"), name)


def _with_mean(output: Any, mask: Tensor | None, name: str) -> Any:
    """The output of a backbone in which the mean replaces every token and the output of its pooler."""
    if not isinstance(output, ModelOutput):
        raise InputError(f"--pooling mean needs a {name} that returns its outputs by name; leave return_dict on")
    hidden: Tensor = output["last_hidden_state"]
    mean = mean_of_tokens(hidden, mask)
    replaced = {"last_hidden_state": mean.unsqueeze(1).expand_as(hidden)}
    if "pooler_output" in inspect.signature(type(output)).parameters:
        replaced["pooler_output"] = mean
    return type(output)(**{**output, **replaced})


def mean_of_tokens(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """sum_t m_t h_t / sum_t m_t of every row, summed in float32.

    Args:
        hidden: [rows, tokens, width].
        mask: [rows, tokens], 1 for tokens and 0 for padding; a prefix that has no hidden states may come before them.
            None: all are tokens.

    Returns:
        [rows, width], in the type of `hidden`.
    """
    if mask is None:
        return hidden.mean(dim=1)
    # the mean of a row without any token is 0, and not NaN
    weight = mask[:, -hidden.shape[1] :, None].float()
    return ((hidden.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)).to(hidden.dtype)
