"""A saved adapter, read and checked before any model is loaded: which base it needs, and with which head."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from lrlora.data import Kind
from lrlora.data.embedded import model_folder
from lrlora.data.tasks import IMAGES
from lrlora.errors import InputError
from lrlora.files import read_json
from lrlora.saved import names
from lrlora.saved.base import AS_IT_IS, IMAGE_CLS, BaseOptions
from lrlora.saved.local import absolute, adapter_in, check_local, looks_local, read_for, run_around
from lrlora.saved.pooling import Pooling, check_pooling
from lrlora.saved.run import RunFolder
from lrlora.saved.updates import adapter_settings, adapter_weights

AUTO_CLASSES: dict[str | None, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
    "FEATURE_EXTRACTION": AutoModel,
    IMAGE_CLS: AutoModelForImageClassification,
    None: AutoModel,
}
# what transformers calls the last layer of its classifiers; XLNet has a sequence_summary of another width as well
_HEADS = (
    "logits_proj", "classifier", "score", "classifier.out_proj", "score.out_proj", "classifier.linear_out",
    "classification_head.out_proj", "sequence_summary.summary",
)  # fmt: skip


@dataclass(frozen=True)
class AdapterFolder:
    """What an adapter folder says.

    Args:
        folder: the folder with adapter_config.json.
        config: that file.
        base: folder or hub name of the base model.
        shapes: of the tensors in adapter_model.safetensors.
        labels: names of the classes; None where nobody wrote them down.
        is_base_given: whether the user named the base, and not adapter_config.json.
        pooling: that it was trained with.
        options: how its base was loaded.
    """

    folder: Path
    config: dict[str, Any]
    base: str
    shapes: dict[str, tuple[int, ...]]
    labels: list[str] | None
    is_base_given: bool = False
    pooling: Pooling = "auto"
    options: BaseOptions = AS_IT_IS

    @property
    def method(self) -> str:
        """PEFT's name of the method, "LRLORA" for ours."""
        return str(self.config.get("peft_type"))

    @property
    def task(self) -> str | None:
        """PEFT's word for the kind of task; IMAGE_CLS of image classifiers, for which it has none."""
        named, base = self.config.get("task_type"), (self.config.get("auto_mapping") or {}).get("base_model_class")
        return IMAGE_CLS if named is None and "ForImageClassification" in str(base) else named

    @property
    def auto_class(self) -> Any:
        """The class of transformers that builds the base model."""
        mapping = self.config.get("auto_mapping") or {}
        if self.config.get("task_type") is None and mapping.get("base_model_class"):
            import transformers

            return getattr(transformers, mapping["base_model_class"], AutoModel)
        return AUTO_CLASSES[self.config.get("task_type")]

    @property
    def kind(self) -> Kind | None:
        """The kind of task that the adapter was trained for; None where it does not say."""
        if self.task == IMAGE_CLS:
            return IMAGES
        if self.task == "SEQ_CLS":
            return "regression" if len(self.class_names() or ()) == 1 else "classification"
        return "causal" if self.config.get("task_type") == "CAUSAL_LM" else None

    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of the head's outputs; their numbers where nobody named them.

        From labels.json, else from the config of the base, whose head it is where the adapter has none. None where
        there is no head, or its width is not known.
        """
        if self.task not in ("SEQ_CLS", IMAGE_CLS):
            return None
        wide = self.head_options().get("num_labels")
        if self.labels is not None and wide in (None, len(self.labels)):
            return self.labels
        described = base_config(self.base, self.options)
        known = None if described is None else names_in_config(described)
        if known is not None and wide in (None, len(known)):
            return known
        return None if wide is None else [str(number) for number in range(wide)]

    def head_options(self) -> dict[str, Any]:
        """What of the base's config the saved head decides, for `from_pretrained`; nothing where there is no head."""
        task = self.task
        if task not in ("SEQ_CLS", "TOKEN_CLS", IMAGE_CLS):
            return {}
        found = [shape[0] for head in _HEADS for name, shape in self.shapes.items() if name.endswith(f".{head}.weight")]
        count = found[0] if found else len(self.labels or ())
        if not count:
            return {}
        options: dict[str, Any] = {"num_labels": count}
        is_named = self.labels is not None and len(self.labels) == count
        if self.labels is not None and is_named:
            options["id2label"] = dict(enumerate(self.labels))
            options["label2id"] = {label: number for number, label in enumerate(self.labels)}
        if task != "TOKEN_CLS" and (is_named or count == 1):
            # the base's own may be another, and decides how a loss is computed
            options["problem_type"] = "single_label_classification" if is_named else "regression"
        return options

    def check_base(self) -> None:
        """Refuse a base that is not there, or that is an adapter itself; see `check_local`."""
        if not self.is_base_given and looks_local(self.base) and not Path(self.base).expanduser().is_dir():
            raise InputError(f"there is no folder {self.base}{self.base_advice}")
        check_local(self.base)

    @property
    def base_advice(self) -> str:
        """What an error about the base ends with."""
        named = f"; {self.folder / names.ADAPTER_CONFIG} names it as the base, pass --model with where that is now"
        return "" if self.is_base_given else named

    def sources(self) -> list[Path]:
        """The folders that hold what is read: the adapter, the run around it, and the base if it is on this machine."""
        return read_for(self.folder, self.base)


def read_adapter(folder: str, model: str | None = None) -> AdapterFolder:
    """Read an adapter folder without loading any model.

    Args:
        folder: an adapter folder, or a run folder that holds one.
        model: base model; None means the one that the adapter names.

    Raises:
        InputError: no adapter there, a file cut short, no base model named, or a kind of task that lrlora cannot load.
    """
    path = adapter_in(Path(folder).expanduser())
    saved = adapter_settings(path)
    shapes = _tensor_shapes(adapter_weights(path))
    own = saved.get("base_model_name_or_path")
    base = model or own
    described = path / names.ADAPTER_CONFIG
    if not base:
        raise InputError(f"{described} names no base model; pass --model")
    if saved.get("task_type") not in AUTO_CLASSES:
        raise InputError(
            f"{described}: task_type {saved.get('task_type')!r} is not one that lrlora loads; use peft.PeftModel"
        )
    base = absolute(model_folder(str(base)))
    options = _options(path, saved)
    if own is None or base != absolute(model_folder(str(own))):
        # another base has no such version, and nobody has vouched for its code
        options = dataclasses.replace(options, revision=None, trust_remote_code=False)
    labels = read_json(path / names.LABELS) if (path / names.LABELS).exists() else None
    return AdapterFolder(path, saved, base, shapes, labels, model is not None, _pooling(path), options)


def _pooling(folder: Path) -> Pooling:
    """The pooling saved with an adapter; of a checkpoint, which has no such file, the setting of the run around it."""
    pooling = "auto"
    if (folder / names.POOLING).exists():
        pooling = read_json(folder / names.POOLING)
        check_pooling(pooling, str(folder / names.POOLING))
    elif runs := run_around(folder):
        pooling = RunFolder(runs[0]).settings.get("pooling", "auto")
        check_pooling(pooling, f"pooling in {runs[0] / names.CONFIG}")
    return pooling


def _options(folder: Path, saved: dict[str, Any]) -> BaseOptions:
    """How the base of an adapter was loaded: by what is saved with it, else by the settings of the run around it."""
    runs = run_around(folder)
    of_run = RunFolder(runs[0]).settings if runs else {}
    beside = read_json(folder / names.BASE) if (folder / names.BASE).exists() else {}
    # never trust_remote_code: a folder of others could switch it on
    measured = {name: beside[name] for name in ("dtype", "quantization") if name in beside}
    return BaseOptions.of({**of_run, **measured, "revision": saved.get("revision")})


def base_config(base: str, options: BaseOptions = AS_IT_IS) -> dict[str, Any] | None:
    """config.json of a base model as a dictionary; None where it cannot be read."""
    try:
        return AutoConfig.from_pretrained(model_folder(base), **options.which).to_dict()
    except (OSError, ValueError, KeyError):
        return None


def names_in_config(described: dict[str, Any]) -> list[str]:
    """Names of the classes in a model's config, as numbers where it has only transformers' own LABEL_0, LABEL_1, ...

    Example:
        >>> names_in_config({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}})
        ['0', '1']
    """
    named = described.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    ordered = [str(name) for _, name in sorted(named.items(), key=lambda pair: int(pair[0]))]
    is_default = all(name == f"LABEL_{number}" for number, name in enumerate(ordered))
    return [str(number) for number in range(len(ordered))] if is_default else ordered


def _tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); copy or train it again") from error
