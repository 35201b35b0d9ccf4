"""TrainConfig: every setting of a training run; the flags of `lrlora train`, their help and defaults come from here."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from peft import LoraConfig, PeftConfig

from lrlora.data import DataSource
from lrlora.data.embedded import DIGITS, VISION
from lrlora.errors import InputError, meant
from lrlora.saved.base import IMAGE_CLS, BaseOptions
from lrlora.saved.pooling import check_pooling
from lrlora.saved.settings import Settings
from lrlora.training.arguments import FREE as FREE_ARGUMENTS
from lrlora.training.arguments import check_passed, passed_fields, why_not
from lrlora.training.fields import UNORDERED, flag, names_of_modules, typed_fields
from lrlora.training.ranges import check_evaluations, check_numbers, check_scheduler
from lrlora.tuner import LRLoraConfig


# HfArgumentParser reads these annotations at run time
@dataclass
class TrainConfig:
    """Settings of one training run; without any, the demo on the embedded encoder and text.

    Every field is a flag of `lrlora train`, described by its help text, and so is every field of the adapter, the
    LRLoraConfig that is trained. With method "lora" only its rank, scale and placement count.

    Raises:
        InputError: a setting outside its range.

    Example:
        TrainConfig(model="roberta-base", data="glue", task="rte", adapter=LRLoraConfig(r=4, target_modules="all-linear"))
    """

    model: Optional[str] = flag(
        None,
        "base model: a local folder, a hub name, embedded-decoder or embedded-vision; the embedded encoder if left out",
        is_place=True,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = flag(
        "float32",
        "type of the base's weights; auto: of its config.json, else of its first weights; what is trained is float32",
    )
    quantization: Literal["none", "bnb-4bit", "bnb-8bit", "torchao-int8"] = flag(
        "none", "of the base's linear layers; bnb-4bit: NF4, double quantisation, products in bfloat16 (QLoRA)"
    )
    device_map: Optional[str] = flag(
        None, "devices of the base in transformers' words: auto, cpu, cuda:1, ...; one device if left out", is_free=True
    )
    revision: Optional[str] = flag(None, "branch, tag or commit of a base model on the hub; main if left out")
    trust_remote_code: bool = flag(
        False, "run Python files that come with the base model: code of strangers, with your rights; pin --revision"
    )
    data: Optional[str] = flag(
        None,
        "a file or folder of jsonl(.gz), csv, txt or parquet, a folder of images in class folders, or a hub dataset; if left out the embedded BBC News titles, or embedded-digits with embedded-vision",
        is_place=True,
    )
    eval_data: Optional[str] = flag(
        None,
        "a file, folder or hub dataset to evaluate on, all of it; the evaluation rows of --data if left out",
        is_place=True,
    )
    split_seed: int = flag(
        0, "of the tenth that is held out where there are no evaluation rows, and of the rows that are drawn"
    )
    task: Optional[str] = flag(
        None, "name of the task: picks TASK_train.* in a folder; GLUE names bring columns and metrics"
    )
    subset: Optional[str] = flag(None, "configuration of a hub dataset")
    kind: Optional[Literal["classification", "regression", "causal", "preference", "image-classification"]] = flag(
        None, "kind of task; read off the columns if left out"
    )
    text_columns: Optional[list[str]] = flag(None, "one or two columns of text")
    label_column: str = flag("label", "column of the label")
    template: Literal["auto", "chat", "plain"] = flag(
        "auto", "how instructions are written: the tokenizer's chat template, or plain headings"
    )
    pooling: Literal["auto", "mean", "cls"] = flag(
        "auto", "what the head of an encoder reads: the mean of the tokens, or one token; auto: the model's own"
    )
    train_rows: Optional[int] = flag(None, "largest number of training rows; all if left out")
    eval_rows: Optional[int] = flag(None, "largest number of evaluation rows; all if left out")
    max_length: Optional[int] = flag(None, "tokens of a row at most; as many as the model takes if left out")
    image_column: Optional[str] = flag(None, "column of images; read off the columns if left out")
    image_size: Optional[int] = flag(None, "pixels a side of images; those of the model if left out")
    augment: Literal["auto", "none", "crop", "crop-flip"] = flag(
        "auto", "of training images: random crops, mirrored or not; auto: crop-flip, and none for embedded-digits"
    )
    bad_images: Literal["refuse", "skip"] = flag("refuse", "of images that cannot be decoded; skip names them")

    out: Optional[str] = flag(
        None, "run folder; runs/demo, or runs/ and the name of the task or the data, if left out", is_free=True
    )
    overwrite: bool = flag(False, "start afresh in a folder that holds another run, deleting that run", is_free=True)
    extend: bool = flag(
        False, "go on with a finished run: --epochs or --max_steps may be larger than its", is_free=True
    )
    method: Literal["lrlora", "lora"] = flag("lrlora", "adapter to train; lora is PEFT's own, for comparison")
    compare: Optional[bool] = flag(
        None, "also train plain LoRA with the same settings; on in the demo only", is_free=True
    )

    adapter: LRLoraConfig = field(default_factory=lambda: LRLoraConfig(target_modules="all-linear"))

    learning_rate: float = flag(2e-3, "of A, B and the head")
    c_learning_rate: Optional[float] = flag(None, "of the coefficients c; 10 times learning_rate if left out")
    weight_decay: float = flag(0.0, "of matrices; never of c")
    epochs: float = flag(2.0, "passes over the training rows")
    max_steps: int = flag(-1, "optimizer steps, instead of epochs")
    batch_size: int = flag(16, "rows per step and device")
    gradient_accumulation: int = flag(1, "steps whose gradients are added up")
    gradient_checkpointing: bool = flag(False, "compute activations again in the backward pass, to save memory")
    lr_scheduler: str = flag("linear", "schedule of the learning rates, a name that transformers knows")
    warmup_steps: float = flag(0.06, "warm-up of the schedule: steps, or a fraction of all steps if below 1")
    max_grad_norm: float = flag(1.0, "gradients are scaled down to this norm")
    precision: Literal["auto", "fp32", "bf16"] = flag("auto", "auto: bf16 where the hardware has it, else fp32")
    seed: int = flag(0, "of initialisation, order and dropout")
    save_steps: int = flag(100, "steps between checkpoints that a killed run resumes from", is_free=True)
    eval_steps: Optional[int] = flag(
        None, "steps between evaluations while training; only at the end if left out; load_best_model_at_end needs it"
    )
    early_stopping_patience: Optional[int] = flag(
        None, "stop after so many evaluations without a gain, and take the best checkpoint; needs eval_steps"
    )
    rank_steps: Optional[int] = flag(
        None,
        "steps between records of the learned ranks; left out: as many as fit in 2 percent of the time; 0: none",
        is_free=True,
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "trackers that transformers knows: tensorboard, wandb, ...", "is_free": True},
    )
    trainer: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "arguments of transformers' TrainingArguments, trl's SFTConfig or DPOConfig; each is a flag by its own name"
        },
    )

    def __post_init__(self) -> None:
        for name in (*PLACES, "out"):
            place = getattr(self, name)
            if place is not None and not place.strip():
                raise InputError(f"{name} is empty; leave it out for its default")
            if place is not None:
                setattr(self, name, os.path.expanduser(place))
        check_numbers(self)
        if self.max_steps != -1 and self.max_steps < 1:
            raise InputError(f"max_steps must be at least 1, got {self.max_steps}; leave it out to train for epochs")
        if self.epochs == 0 and self.max_steps < 1:
            raise InputError(f"epochs must be above 0, got {self.epochs}; or pass max_steps")
        if self.text_columns is not None and len(self.text_columns) not in (1, 2):
            raise InputError(f"text_columns takes one or two names, got {self.text_columns}")
        check_scheduler(self.lr_scheduler, "lr_scheduler_kwargs" in self.trainer)
        check_pooling(self.pooling)
        self.base_options.check(self.model)
        check_passed(self.trainer, OURS)
        check_evaluations(self)
        if self.extend and self.overwrite:
            raise InputError("extend goes on with a run and overwrite deletes it; pass one of them")

    @property
    def base_options(self) -> BaseOptions:
        """How the base is loaded."""
        return BaseOptions.of(vars(self))

    @property
    def is_demo(self) -> bool:
        """Whether the embedded text is the task, and plain LoRA is trained as well unless asked otherwise."""
        return self.data is None

    @property
    def compares(self) -> bool:
        """Whether plain LoRA is trained as well, for comparison."""
        return self.method != "lora" and (self.is_demo if self.compare is None else self.compare)

    def settings(self) -> Settings:
        """Every setting by name, and which of them decide the result."""
        free = FREE | {f"trainer.{name}" for name in FREE_ARGUMENTS}
        longer = ("epochs", "max_steps") if self.extend else ()
        return Settings(self._flat(), TrainConfig()._flat(), free, PLACES, longer)

    def with_absolute_paths(self) -> TrainConfig:
        """The same settings for a process in any folder; a name of the hub stays one unless it is a path here."""
        places = {name: getattr(self, name) for name in PLACES}
        local = {name: os.path.abspath(p) for name, p in places.items() if p is not None and os.path.exists(p)}
        return dataclasses.replace(self, **local, out=os.path.abspath(self.out_folder()))

    def out_folder(self) -> str:
        """The run folder; without `out` one of its own in runs/, named after the task or the data."""
        if self.out is not None:
            return self.out
        if self.data is None:
            return "runs/digits" if self.model == VISION else "runs/demo"
        # one place has one name, spelled "." or "data/"
        place = os.path.realpath(self.data) if os.path.exists(self.data) else self.data
        name = self.task or re.sub(r"(\.jsonl?|\.csv|\.parquet)?(\.gz)?$", "", place.rstrip("/").split("/")[-1])
        name = re.sub(r"[^\w.-]+", "-", name).strip(".-")
        return f"runs/{name or 'data'}"

    def data_source(self) -> DataSource:
        """Where the rows come from."""
        data = DIGITS if self.data is None and self.model == VISION else self.data
        columns = None if self.text_columns is None else tuple(self.text_columns)
        own = {each.name: vars(self).get(each.name) for each in dataclasses.fields(DataSource)}
        return DataSource(**{**own, "data": data, "text_columns": columns, "seed": self.split_seed})

    def adapter_config(self, task_type: str) -> LRLoraConfig | LoraConfig:
        """The PEFT config of the run's method: `adapter`, or LoraConfig of the same rank, scale and placement.

        Raises:
            InputError: a field outside its range.
        """
        word = None if task_type == IMAGE_CLS else task_type
        adapter = dataclasses.replace(self.adapter, task_type=word, revision=self.revision)
        return adapter if self.method == "lrlora" else adapter.to_lora()

    @classmethod
    def of(cls, **settings: Any) -> TrainConfig:
        """Settings by their flat names, as the flags and config.json have them; see `with_settings`.

        Example:
            >>> TrainConfig.of(max_steps=10, r=4).adapter.r
            4
        """
        return cls().with_settings(**settings)

    def with_settings(self, **settings: Any) -> TrainConfig:
        """The same settings with some changed, by their flat names: `r` is a field of `adapter`.

        Args:
            settings: fields of TrainConfig and of LRLoraConfig, and arguments of transformers' and trl's trainers,
                which are added to `trainer`. Names of modules may be a list of one word that is all-linear or a regular
                expression.

        Raises:
            InputError: a name that is no setting, or a value outside its range.
        """
        names = [each.name for each in setting_fields()]
        if unknown := sorted(settings.keys() - set(names)):
            passed = {each.name for each in passed_fields(OURS)}
            if other := [name for name in unknown if name not in passed]:
                near, why = meant(other[0], [*names, *passed]), why_not(other[0])
                more = f": {why}" if why else f"; did you mean {near}?" if near else ""
                raise InputError(f"no such setting: {other[0]}{more}")
            more = {name: settings.pop(name) for name in unknown}
            settings["trainer"] = {**self.trainer, **settings.get("trainer", {}), **more}
        for name in UNORDERED:
            if name in settings:
                settings[name] = names_of_modules(name, settings[name])
        own = {each.name for each in dataclasses.fields(self)}
        of_adapter = {name: settings.pop(name) for name in settings.keys() - own}
        adapter = dataclasses.replace(self.adapter, **of_adapter) if of_adapter else self.adapter
        return dataclasses.replace(self, adapter=adapter, **settings)

    def _flat(self) -> dict[str, Any]:
        found = {}
        for each in setting_fields():
            value = getattr(self if hasattr(self, each.name) else self.adapter, each.name)
            if each.name in UNORDERED and value is not None:
                value = [value] if isinstance(value, str) else sorted(value)
            found[each.name] = copy.deepcopy(value)
        return found


@functools.cache
def setting_fields() -> tuple[dataclasses.Field[Any], ...]:
    """Every setting by its flat name: the fields of TrainConfig, with those of its adapter in place of `adapter`.

    Of LRLoraConfig these are the fields that a user chooses: not those that PEFT fills in, other names of fields, and
    what has no effect.
    """
    others = {each.name for each in dataclasses.fields(PeftConfig)}
    of_adapter = typed_fields(LRLoraConfig, {*others, "config_version", "init_lora_weights", "fan_in_fan_out"})
    default = TrainConfig().adapter
    for each in of_adapter:
        if each.default is not dataclasses.MISSING:
            each.default = getattr(default, each.name)
    return tuple(
        each for own in typed_fields(TrainConfig) for each in (of_adapter if own.name == "adapter" else (own,))
    )


FREE = frozenset(each.name for each in dataclasses.fields(TrainConfig) if each.metadata.get("is_free"))
"""Settings that do not change what is trained: a run may be resumed with others."""
PLACES = tuple(each.name for each in dataclasses.fields(TrainConfig) if each.metadata.get("is_place"))
"""Settings that may name a place on this machine, or something on the hub."""
OURS = frozenset(each.name for each in dataclasses.fields(TrainConfig)) | {"debug"}
"""Names that no argument of a trainer can have: settings and flags of lrlora's own."""
