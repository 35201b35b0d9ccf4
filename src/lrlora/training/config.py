"""TrainConfig: every setting of `lrlora train`; the flags, their help and their defaults come from here."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from lrlora.data import DataSource
from lrlora.errors import InputError
from lrlora.saved.pooling import check_pooling
from lrlora.saved.run import Settings
from lrlora.training.placement import ALL_LINEAR
from lrlora.training.ranges import check_numbers, check_scheduler
from lrlora.tuner import LRLoraConfig


def _flag(default: Any, help: str, is_free: bool = False, is_place: bool = False) -> Any:
    """A setting: `is_free` does not change what is trained, `is_place` may be a path here, or a name of the hub."""
    return field(default=default, metadata={"help": help, "is_free": is_free, "is_place": is_place})


# HfArgumentParser reads these annotations at run time and knows Optional[X], not X | None, on Python 3.10
@dataclass
class TrainConfig:
    """Settings of one training run; without any, the demo on the embedded encoder and text.

    Every field is a flag of `lrlora train`, described by its help text.

    Raises:
        InputError: a setting outside its range.

    Example:
        TrainConfig(model="roberta-base", data="glue", task="rte", out="runs/rte")
    """

    model: Optional[str] = _flag(
        None,
        "base model: a local folder, a hub name, or embedded-decoder; the embedded encoder if left out",
        is_place=True,
    )
    data: Optional[str] = _flag(
        None,
        "a file or folder of jsonl(.gz), csv or parquet, or a hub dataset; the embedded BBC News titles if left out",
        is_place=True,
    )
    eval_data: Optional[str] = _flag(
        None,
        "a file, folder or hub dataset to evaluate on, all of it; the evaluation rows of --data if left out",
        is_place=True,
    )
    split_seed: int = _flag(
        0, "of the tenth that is held out where there are no evaluation rows, and of the rows that are drawn"
    )
    task: Optional[str] = _flag(
        None, "name of the task: picks TASK_train.* in a folder; GLUE names bring columns and metrics"
    )
    subset: Optional[str] = _flag(None, "configuration of a hub dataset")
    kind: Optional[Literal["classification", "regression", "causal"]] = _flag(
        None, "kind of task; read off the columns if left out"
    )
    text_columns: Optional[list[str]] = _flag(None, "one or two columns of text")
    label_column: str = _flag("label", "column of the label")
    template: Literal["auto", "chat", "plain"] = _flag(
        "auto", "how instructions are written: the tokenizer's chat template, or plain headings"
    )
    pooling: Literal["auto", "mean", "cls"] = _flag(
        "auto", "what the head of an encoder reads: the mean of the tokens, or one token; auto: the model's own"
    )
    train_rows: Optional[int] = _flag(None, "largest number of training rows; all if left out")
    eval_rows: Optional[int] = _flag(None, "largest number of evaluation rows; all if left out")
    max_length: Optional[int] = _flag(None, "tokens of a row at most; as many as the model takes if left out")

    out: Optional[str] = _flag(
        None, "run folder; runs/demo, or runs/ and the name of the task or the data, if left out", is_free=True
    )
    overwrite: bool = _flag(False, "start afresh in a folder that holds another run, deleting that run", is_free=True)
    method: Literal["lrlora", "lora"] = _flag("lrlora", "adapter to train; lora is PEFT's own, for comparison")
    compare: Optional[bool] = _flag(
        None, "also train plain LoRA with the same settings; on in the demo only", is_free=True
    )

    r: int = _flag(8, "rank of the product BA")
    lora_alpha: Optional[float] = _flag(None, "s = lora_alpha / r; 2 r if left out")
    lora_dropout: float = _flag(0.0, "dropout on the input of the update")
    use_rslora: bool = _flag(False, "s = lora_alpha / sqrt(r)")
    target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "names of the modules to adapt, or all-linear; one word such as '.*query' is a regular "
                  "expression for whole names"},
    )  # fmt: skip
    exclude_modules: Optional[list[str]] = _flag(
        None, "names of modules not to adapt, or one word that is a regular expression"
    )
    modules_to_save: Optional[list[str]] = _flag(
        None, "names of modules trained and saved whole; new ones, such as the head, are added"
    )
    phi: Literal["sinc", "residual", "sine", "linear"] = _flag(
        "sinc", "nonlinearity: the paper's sinc basis, z + sincs, fixed sine, or only its slopes"
    )
    num_basis: int = _flag(11, "K, number of sincs, odd")
    tau: str = _flag("0.05", "knee, where phi bends, in units of 1/sqrt(in), or auto")
    kappa: float = _flag(1.0, "knee in units of RMS(BA), for tau auto")
    tau_warmup_steps: int = _flag(20, "steps as plain LoRA, for tau auto")
    tau_follow: float = _flag(0.7, "fraction of training after which tau is frozen, for tau auto")
    share: Literal["matrix", "type", "block", "global", "frozen"] = _flag(
        "matrix", "which layers share one phi; frozen: phi is not trained"
    )
    omega: float = _flag(200.0, "frequency of phi sine")
    carrier: Literal["none", "signs"] = _flag("none", "signs let the update have a rank above r at first order")
    carrier_offset: float = _flag(0.5, "where the carrier uses phi, in units of tau")
    carrier_start: Literal["closed", "half", "open"] = _flag("open", "where the gate starts: closed is LoRA")
    carrier_seed: int = _flag(0, "of the carrier's signs")

    learning_rate: float = _flag(2e-3, "of A, B and the head")
    c_learning_rate: Optional[float] = _flag(None, "of the coefficients c; 10 times learning_rate if left out")
    weight_decay: float = _flag(0.0, "of matrices; never of c")
    epochs: float = _flag(2.0, "passes over the training rows")
    max_steps: int = _flag(-1, "optimizer steps, instead of epochs")
    batch_size: int = _flag(16, "rows per step and device")
    gradient_accumulation: int = _flag(1, "steps whose gradients are added up")
    gradient_checkpointing: bool = _flag(False, "compute activations again in the backward pass, to save memory")
    lr_scheduler: str = _flag("linear", "schedule of the learning rates, a name that transformers knows")
    warmup_steps: float = _flag(0.06, "warm-up of the schedule: steps, or a fraction of all steps if below 1")
    max_grad_norm: float = _flag(1.0, "gradients are scaled down to this norm")
    precision: Literal["auto", "fp32", "bf16"] = _flag("auto", "auto: bf16 where the hardware has it, else fp32")
    seed: int = _flag(0, "of initialisation, order and dropout")
    save_steps: int = _flag(100, "steps between checkpoints that a killed run resumes from", is_free=True)
    rank_steps: Optional[int] = _flag(
        None,
        "steps between records of the learned ranks; left out: as many as fit in 2 percent of the time; 0: none",
        is_free=True,
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "trackers that transformers knows: tensorboard, wandb, ...", "is_free": True},
    )
    verbose: bool = _flag(False, "print how the adapted layers are computed, and why", is_free=True)
    json: bool = _flag(False, "print the result as JSON", is_free=True)
    debug: bool = _flag(False, "show a traceback on errors", is_free=True)

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
        check_scheduler(self.lr_scheduler)
        check_pooling(self.pooling)
        self.adapter_config("SEQ_CLS")

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
        return Settings(dataclasses.asdict(self), FREE, PLACES)

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
            return "runs/demo"
        # one place has one name, spelled "." or "data/"
        place = os.path.realpath(self.data) if os.path.exists(self.data) else self.data
        name = self.task or re.sub(r"(\.jsonl?|\.csv|\.parquet)?(\.gz)?$", "", place.rstrip("/").split("/")[-1])
        name = re.sub(r"[^\w.-]+", "-", name).strip(".-")
        return f"runs/{name or 'data'}"

    def data_source(self) -> DataSource:
        """Where the rows come from."""
        return DataSource(
            data=self.data,
            task=self.task,
            subset=self.subset,
            kind=self.kind,
            text_columns=None if self.text_columns is None else tuple(self.text_columns),
            label_column=self.label_column,
            train_rows=self.train_rows,
            eval_rows=self.eval_rows,
            seed=self.split_seed,
            eval_data=self.eval_data,
        )

    def adapter_config(self, task_type: str) -> Any:
        """The PEFT config of the run's method: LRLoraConfig, or LoraConfig of the same rank, scale and placement.

        Raises:
            InputError: a field outside its range.
        """
        common: dict[str, Any] = dict(
            task_type=task_type,
            r=self.r,
            lora_dropout=self.lora_dropout,
            use_rslora=self.use_rslora,
            target_modules=_names("target_modules", self.target_modules),
            exclude_modules=_names("exclude_modules", self.exclude_modules),
            modules_to_save=self.modules_to_save,
        )
        lrlora = LRLoraConfig(
            **common,
            lora_alpha=self.lora_alpha,
            phi=self.phi,
            num_basis=self.num_basis,
            tau=self._tau(),
            kappa=self.kappa,
            tau_warmup_steps=self.tau_warmup_steps,
            tau_follow=self.tau_follow,
            share=self.share,
            omega=self.omega,
            carrier=self.carrier,
            carrier_offset=self.carrier_offset,
            carrier_start=self.carrier_start,
            carrier_seed=self.carrier_seed,
        )
        if self.method == "lrlora":
            return lrlora
        from peft import LoraConfig

        return LoraConfig(**common, lora_alpha=lrlora.alpha_of(self.r))  # pyright: ignore[reportArgumentType]

    def _tau(self) -> Any:
        if self.tau == "auto":
            return "auto"
        try:
            return float(self.tau)
        except ValueError:
            raise InputError(f"tau must be a number above 0 or auto, got {self.tau!r}") from None


FREE = frozenset(each.name for each in dataclasses.fields(TrainConfig) if each.metadata.get("is_free"))
"""Settings that do not change what is trained: a run may be resumed with others."""
PLACES = tuple(each.name for each in dataclasses.fields(TrainConfig) if each.metadata.get("is_place"))
"""Settings that may name a place on this machine, or something on the hub."""


def _names(field: str, words: list[str] | str | None) -> list[str] | str | None:
    """Names of modules as PEFT takes them: one word may be a regular expression, or all-linear."""
    if words is None or isinstance(words, str):
        return words
    alone = [word for word in words if word == ALL_LINEAR or set(word) & set("*+?[](){}|^$\\")]
    if alone and len(words) > 1:
        raise InputError(
            f"{field} takes names, or one word that is {ALL_LINEAR} or a regular expression, got {alone[0]!r} among "
            f"{len(words)} words; join expressions with | in one"
        )
    return alone[0] if alone else words
