"""How a base model is loaded: its precision, its quantisation, its devices, which version of it, and whose code.

What PEFT's `prepare_model_for_kbit_training` does is not done to a quantised base. It freezes the base, as
`get_peft_model` does. It turns the norms, the embeddings and the head into float32: frozen values of bfloat16 are no
more exact then, and embeddings and head take twice their memory; `dtype` decides their type here. It turns gradient
checkpointing on, which is a setting here. It lets the embeddings' output ask for gradients, which only reentrant
checkpointing needs, and transformers' is not reentrant.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from lrlora.data.embedded import DECODER, VISION
from lrlora.errors import InputError
from lrlora.saved.local import looks_local

DType = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "bnb-4bit", "bnb-8bit", "torchao-int8"]
IMAGE_CLS = "IMAGE_CLS"
"""Our word for the kind of task of image classification, for which PEFT has none: its `task_type` is None."""
_IMAGE_HEADS = ("classifier", "cls_classifier", "distillation_classifier", "score", "head", "fc")
_PACKAGE = {"bnb-4bit": "bitsandbytes", "bnb-8bit": "bitsandbytes", "torchao-int8": "torchao"}


@dataclass(frozen=True)
class BaseOptions:
    """How a base model is loaded; the default is float32, as it is, on the CPU or the device that the Trainer takes.

    Args:
        dtype: of its weights that are not quantised; "auto": of its config.json, else of its first weights.
        quantization: of its linear layers. "bnb-4bit": NF4 in blocks of 64 with double quantisation, products in
            bfloat16 (QLoRA, arXiv 2305.14314). "bnb-8bit": LLM.int8() (arXiv 2208.07339). "torchao-int8": a scale per
            row, products in `dtype`. Head, embeddings and pooler are not quantised.
        device_map: as transformers takes it, such as "auto", "cuda:1" or "cpu". None: the CPU, or with a
            quantisation a GPU, if there is one.
        revision: branch, tag or commit of a model on the hub; None: its main branch.
        trust_remote_code: run the Python files that come with the model.

    Raises:
        InputError: a word that is none of those above.

    Example:
        >>> BaseOptions(dtype="bfloat16").loading()["dtype"]
        torch.bfloat16
    """

    dtype: DType = "float32"
    quantization: Quantization = "none"
    device_map: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name, words in (("dtype", get_args(DType)), ("quantization", get_args(Quantization))):
            if getattr(self, name) not in words:
                raise InputError(f"{name} must be one of {', '.join(words)}, got {getattr(self, name)!r}")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> BaseOptions:
        """The options among settings by name; what is not there has its default."""
        own = {each.name for each in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in settings.items() if name in own})

    @property
    def which(self) -> dict[str, Any]:
        """For `from_pretrained` of configs and tokenizers: the version, and whether its code may run."""
        # without a word transformers would ask on the terminal
        return {"trust_remote_code": self.trust_remote_code, **({"revision": self.revision} if self.revision else {})}

    @property
    def plain(self) -> BaseOptions:
        """The same version of the model in float32, neither quantised nor spread over devices."""
        return BaseOptions(revision=self.revision, trust_remote_code=self.trust_remote_code)

    @property
    def measured(self) -> dict[str, str]:
        """Of those that decide what the model computes, the ones that are not the default: saved with an adapter."""
        return {
            name: getattr(self, name)
            for name in ("dtype", "quantization")
            if getattr(self, name) != getattr(AS_IT_IS, name)
        }

    def check(self, model: str | None) -> None:
        """Refuse what cannot work with a model, before anything is read.

        Args:
            model: folder or hub name; None: the embedded encoder.

        Raises:
            InputError: a revision of a folder, or a quantisation whose package is not installed.
        """
        if self.revision and (
            model in (None, DECODER, VISION) or looks_local(model) or Path(model).expanduser().is_dir()
        ):
            raise InputError(
                f"revision is of a model on the hub, and {model or 'the embedded encoder'} is a folder on this "
                "machine; leave --revision out"
            )
        package = _PACKAGE.get(self.quantization)
        if package is not None and importlib.util.find_spec(package) is None:
            raise InputError(
                f"quantization {self.quantization} needs the package {package}, which is not installed: "
                f"pip install {package}; or load the base in half the memory of float32 with --dtype bfloat16"
            )

    def loading(self, skipped: list[str] | None = None) -> dict[str, Any]:
        """For `from_pretrained` of models.

        Args:
            skipped: modules that are not quantised.
        """
        found: dict[str, Any] = {"dtype": "auto" if self.dtype == "auto" else getattr(torch, self.dtype), **self.which}
        if self.device_map is not None:
            found["device_map"] = self.device_map
        if self.quantization != "none":
            found["quantization_config"] = self._quantised(skipped)
            if self.device_map is None and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
                # under torchrun each process needs a base of its own, on its own GPU
                found["device_map"] = {"": int(os.environ["LOCAL_RANK"])}
        return found

    def _quantised(self, skipped: list[str] | None) -> Any:
        from transformers import BitsAndBytesConfig, TorchAoConfig

        if self.quantization == "torchao-int8":
            from torchao.quantization import Int8WeightOnlyConfig

            return TorchAoConfig(quant_type=Int8WeightOnlyConfig(version=2), modules_to_not_convert=skipped)
        if self.quantization == "bnb-8bit":
            return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=skipped,
        )


AS_IT_IS = BaseOptions()
"""The default: float32, not quantised, on one device."""


def left_plain(base: Any) -> list[str]:
    """Modules of a model that are not quantised: all outside its backbone, poolers, and what is tied to the embeddings.

    A head that is new in this base, and is trained whole, is one of them.
    """
    outside = [name for name, _ in base.named_children() if name != base.base_model_prefix]
    output = base.get_output_embeddings()
    return [
        *(outside if hasattr(base, base.base_model_prefix) else image_heads(base)),
        *(name for name, module in base.named_modules() if name.split(".")[-1] == "pooler" or module is output),
    ]


def image_heads(base: Any) -> list[str]:
    """The modules of an image classifier that make its logits, by the names that transformers gives them; else none."""
    if "ForImageClassification" not in type(base).__name__:
        return []
    return [name for name, module in base.named_children() if name in _IMAGE_HEADS and list(module.parameters())]
