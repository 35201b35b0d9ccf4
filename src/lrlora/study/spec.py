"""What a study is: arms x tasks x learning rates x seeds, read from a YAML file and checked."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lrlora.data import Kind
from lrlora.data.commonsense import COMMONSENSE
from lrlora.errors import InputError
from lrlora.study import marked

EMBEDDED = "embedded"
"""Instead of a path: the titles of BBC News articles that come with the demo."""


@dataclass(frozen=True)
class Task:
    """One task of a study.

    Args:
        name: of the task in this study.
        data: file, folder, hub dataset, or "embedded"; relative to `data_root` where the study has one. None: the
            study's `data_root`.
        task: GLUE's name, or the prefix of the files of a folder; None: `name`, where GLUE has such a task.
        subset, kind, text_columns, label_column: as in `lrlora train`.
        train_rows: rows to train on, at most. None: all that validation leaves.
        validation_rows: rows split off the training file, which choose the learning rate. None: a tenth of it.
        test_rows: rows which give the result. None: all of the evaluation file; with test_from "training" a tenth.
        test_from: "evaluation", the evaluation file; or "training": split off the training file, for a study that
            chooses defaults and must not see the evaluation file.
        max_length: tokens of a row at most.
        template: how instructions are written.
        epochs, max_steps, batch_size, gradient_accumulation: of every cell of this task.
        commonsense: of kind "causal": commonsense tasks whose test rows give the result, as the mean of their
            accuracies. Empty: the loss on held-out answers.
        commonsense_data: folder of their files, relative to `data_root`, or "hub"; None: `data_root`.
        commonsense_rows: test rows of each, at most. None: all.
        how, prompt: as in `lrlora.evaluation.score_commonsense`.
    """

    name: str
    data: str | None = None
    task: str | None = None
    subset: str | None = None
    kind: Kind | None = None
    text_columns: tuple[str, ...] | None = None
    label_column: str = "label"
    train_rows: int | None = None
    validation_rows: int | None = None
    test_rows: int | None = None
    test_from: Literal["evaluation", "training"] = "evaluation"
    max_length: int = 128
    template: Literal["auto", "chat", "plain"] = "auto"
    epochs: float = 2.0
    max_steps: int = -1
    batch_size: int = 16
    gradient_accumulation: int = 1
    commonsense: tuple[str, ...] = ()
    commonsense_data: str | None = None
    commonsense_rows: int | None = None
    how: Literal["likelihood", "generation"] = "likelihood"
    prompt: Literal["question", "instruction"] = "instruction"

    def __post_init__(self) -> None:
        _check_name(self.name, "name of a task")
        unknown = [name for name in self.commonsense if name not in COMMONSENSE]
        if unknown:
            raise InputError(f"no commonsense task {unknown[0]!r}; there are: {', '.join(COMMONSENSE)}")
        for name in ("train_rows", "validation_rows", "test_rows", "max_length", "batch_size", "gradient_accumulation"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.epochs <= 0 and self.max_steps < 1:
            raise InputError(f"epochs must be above 0, got {self.epochs}; or give max_steps")


@dataclass(frozen=True)
class Training:
    """What is the same for every cell of a study; the fields mean what they mean in `lrlora train`."""

    weight_decay: float = 0.0
    lr_scheduler: str = "linear"
    warmup_steps: float = 0.06
    max_grad_norm: float = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Arm:
    """One method with its settings.

    Args:
        name: of the arm in this study.
        method: a key of `lrlora.study.arms.METHODS`.
        fields: fields of the method's config in PEFT that differ from its defaults here.
        learning_rates: rates of its own, as many as every other arm has; empty: the study's.
        c_lr_factor: learning rate of c over that of A and B, for LR-LoRA; None: 10.
    """

    name: str
    method: str
    fields: dict[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()
    c_lr_factor: float | None = None


@dataclass(frozen=True)
class Study:
    """A comparison: every arm on every task, tuned by the same budget.

    Args:
        study: its name.
        arms, tasks: what is compared, on what.
        learning_rates: the rates of every arm that has none of its own. One alone is taken as it is, without a search.
        seeds: of the runs that give the result, at the chosen rate.
        search_seeds: of the runs that choose the rate.
        choose_by: what of them chooses it: "metric", the task's first one, or "loss", which is less noisy on few rows.
        note: a sentence about the study, shown with its results.
        reference: the arm that others are compared with; None: the first arm of method "lora".
        model: folder or hub name; None: the embedded encoder.
        model_config: config of the model, {"model_type": ...}, so that --dry_run needs neither weights nor hub.
        data_root: folder that the tasks' `data` is relative to.
        target_modules, exclude_modules, modules_to_save: the placement, the same for every arm.
        training: what is the same for every cell.
        device_tflops: assumed speed of the device in TFLOP/s, for the estimates of --dry_run.
    """

    study: str
    arms: tuple[Arm, ...]
    tasks: tuple[Task, ...]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    search_seeds: tuple[int, ...] = (0,)
    choose_by: Literal["metric", "loss"] = "metric"
    note: str = ""
    reference: str | None = None
    model: str | None = None
    model_config: dict[str, Any] | None = None
    data_root: str | None = None
    target_modules: str | tuple[str, ...] = "all-linear"
    exclude_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    training: Training = Training()
    device_tflops: float | None = None

    def __post_init__(self) -> None:
        _check_name(self.study, "name of a study")
        for name in ("arms", "tasks", "learning_rates", "seeds", "search_seeds"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty; at least one is needed")
        for name in ("arms", "tasks"):
            _check_once([each.name for each in getattr(self, name)], name)
        for name in ("seeds", "search_seeds"):
            _check_once(getattr(self, name), name)
        self._check_budget()
        if self.reference is not None and self.reference not in [arm.name for arm in self.arms]:
            raise InputError(f"reference {self.reference!r} is none of the arms")

    def _check_budget(self) -> None:
        for owner, rates in (("the study", self.learning_rates), *((a.name, self.rates_of(a)) for a in self.arms)):
            _check_once(rates, f"learning_rates of {owner}")
            if not all(math.isfinite(rate) and rate > 0 for rate in rates):
                raise InputError(f"learning_rates of {owner} must be above 0, got {list(rates)}")
        for arm in self.arms:
            if len(self.rates_of(arm)) != len(self.learning_rates):
                raise InputError(
                    f"arm {arm.name!r} has {len(self.rates_of(arm))} learning rates and the study "
                    f"{len(self.learning_rates)}: every arm gets the same budget; give it as many"
                )

    def rates_of(self, arm: Arm) -> tuple[float, ...]:
        """The learning rates that an arm is tuned over."""
        return arm.learning_rates or self.learning_rates

    def reference_arm(self) -> str | None:
        """Name of the arm that others are compared with."""
        return self.reference or next((arm.name for arm in self.arms if arm.method == "lora"), None)

    def data_of(self, task: Task) -> str | None:
        """What `lrlora.data` is asked for; None: the embedded text.

        Raises:
            InputError: a task that says nowhere where its rows are.
        """
        if task.data == EMBEDDED:
            return None
        if self.data_root is not None:
            return str(Path(self.data_root).expanduser() / (task.data or ""))
        if task.data is None:
            raise InputError(
                f"task {task.name!r} names no data and the study no data_root; pass --data_root FOLDER, or give the "
                'task data: a path, a dataset of the hub such as "glue", or "embedded"'
            )
        return task.data

    def commonsense_data_of(self, task: Task) -> str:
        """Where the test rows of a task's commonsense tasks lie.

        Raises:
            InputError: a task that says nowhere where they are.
        """
        if task.commonsense_data == "hub":
            return "hub"
        if self.data_root is None and task.commonsense_data is None:
            raise InputError(
                f"task {task.name!r} is measured on {', '.join(task.commonsense)}, but neither it nor the study says "
                "where their test rows are; pass --data_root FOLDER, or give the task commonsense_data: a folder or "
                '"hub"'
            )
        return str(Path(self.data_root or "").expanduser() / (task.commonsense_data or ""))


def read_study(path: Path | str) -> Study:
    """Read a study file.

    Raises:
        InputError: no such file, or what does not fit, by name and with its line.
    """
    from lrlora.study.arms import check_arm

    whole = marked.read(Path(path))
    if not isinstance(whole.value, dict):
        raise InputError(f"{whole.where}: a study must be a mapping of keys to values")
    ready: dict[str, Any] = {
        "arms": tuple(_arm(piece) for piece in _listed(whole, "arms")),
        "tasks": tuple(marked.into(Task, piece, f"task {_name_in(piece)}") for piece in _listed(whole, "tasks")),
    }
    if "training" in whole.value:
        ready["training"] = marked.into(Training, whole.value["training"], "training")
    study = marked.into(Study, whole, "the study", **ready)
    for arm, piece in zip(study.arms, _listed(whole, "arms"), strict=True):
        try:
            check_arm(study, arm)
        except InputError as error:
            raise InputError(f"{piece.where}: arm {arm.name!r}: {error}") from error
    return study


def _arm(piece: marked.Marked) -> Arm:
    """What is no key of an arm is a field of its method's config, in the same mapping."""
    if not isinstance(piece.value, dict):
        raise InputError(f"{piece.where}: an arm must be a mapping, got {piece.plain()!r}")
    own = {f.name for f in dataclasses.fields(Arm)} - {"fields"}
    fields = {key: each.plain() for key, each in piece.value.items() if key not in own}
    known = marked.Marked({key: each for key, each in piece.value.items() if key in own}, piece.where)
    arm = marked.into(Arm, known, f"arm {_name_in(piece)}", fields=fields)
    try:
        _check_name(arm.name, "name of an arm")
        if arm.c_lr_factor is not None and not arm.c_lr_factor > 0:
            raise InputError(f"c_lr_factor must be above 0, got {arm.c_lr_factor}")
    except InputError as error:
        raise InputError(f"{piece.where}: {error}") from error
    return arm


def _listed(whole: marked.Marked, key: str) -> list[marked.Marked]:
    piece = whole.value.get(key)
    if piece is None or not isinstance(piece.value, list):
        raise InputError(f"{(piece or whole).where}: the study needs {key!r}, a list")
    return piece.value


def _name_in(piece: marked.Marked) -> str:
    named = piece.value.get("name") if isinstance(piece.value, dict) else None
    return repr(named.value) if named is not None else "without a name"


def _check_name(name: str, what: str) -> None:
    # names become parts of file names
    if not re.fullmatch(r"[\w.+-]+", name):
        raise InputError(f"the {what} must be of letters, digits and _ . + -, got {name!r}")


def _check_once(values: Sequence[Any], what: str) -> None:
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise InputError(f"{what} holds {twice[0]!r} twice")
