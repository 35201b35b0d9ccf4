"""The task metric of a base, its adapter, and what a merge and an export made of it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from lrlora.data import Kind, TaskData, load_evaluation, load_task
from lrlora.data.tasks import IMAGES, LANGUAGE
from lrlora.errors import InputError
from lrlora.evaluation.measure import Measure, TaskMeasure
from lrlora.export.lora.choose import RankChoice
from lrlora.export.lora.write import export_lora
from lrlora.export.merging.merge import Say, merge
from lrlora.files import read_json
from lrlora.saved import names
from lrlora.saved.adapter import AdapterFolder, base_config, names_in_config, read_adapter
from lrlora.saved.base import IMAGE_CLS
from lrlora.saved.identity import digest_of_rows
from lrlora.saved.load import load_adapter, load_base, load_base_of, tokenizer_of
from lrlora.saved.local import is_model, run_around
from lrlora.saved.pooling import why_not_plain
from lrlora.saved.processor import load_processor
from lrlora.saved.run import RunFolder
from lrlora.saved.tokens import load_tokenizer
from lrlora.training.config import TrainConfig, setting_fields
from lrlora.training.model import is_bf16
from lrlora.training.of_kind import check_kind

MODELS = ("base", "adapter", "merged", "exported")


@dataclass(frozen=True)
class Comparison:
    """Metrics of one task for several models.

    Args:
        task: name of the task.
        source: where its rows came from.
        metric: name of the metric to look at.
        rows: how many rows were scored.
        results: metrics and loss, by model.
    """

    task: str
    source: str
    metric: str
    rows: int
    results: dict[str, dict[str, float]]


def run_config(adapter: str, **overrides: Any) -> TrainConfig:
    """The settings of the run folder that holds an adapter, with those given in their place.

    Args:
        adapter: an adapter folder, or a run folder that holds one; of a model, data must be given.
        overrides: settings by the names of the flags; None leaves the run's. `data` is what to evaluate on, all of it:
            it comes back as `eval_data`, and the run's limit of rows does not hold for it.

    Raises:
        InputError: no run around the adapter, and no data given.
    """
    folder = Path(adapter).expanduser() if is_model(adapter) else read_adapter(adapter).folder
    run = RunFolder(folder.parent)
    given = {name: value for name, value in overrides.items() if value is not None}
    settings: dict[str, Any] = {}
    if folder == run.adapter and run.described:
        settings = dict(run.settings)
        # runs did not always tell the seed of their split from that of their training
        settings.setdefault("split_seed", settings.get("seed", 0))
    elif "data" not in given:
        raise InputError(f"{adapter} is not in a run folder, whose config.json would name the task; pass --data")
    if "data" in given:
        settings = {k: v for k, v in settings.items() if k not in ("subset", "eval_rows")}
        given["eval_data"] = given.pop("data")
    known = {field.name for field in setting_fields()}
    return TrainConfig.of(**{k: v for k, v in {**settings, **given}.items() if k in known})


def compare(
    adapter: str,
    asked: TrainConfig | Measure,
    models: Sequence[str] = MODELS[:3],
    choice: RankChoice | None = None,
    model: str | None = None,
    say: Say = lambda line: None,
) -> Comparison:
    """Score several models on one task, with the same code and rows.

    The merged and the exported model are made in a temporary folder and loaded from there, as a user would load them.

    Args:
        adapter: an adapter folder, or a run folder that holds one.
        asked: what the models are measured by: settings that name a task, see `run_config`; or a measure with its rows,
            such as `lrlora.evaluation.commonsense.load_suite` returns.
        models: of "base", "adapter", "merged" and "exported". The base has a new head where it has none of its own.
        choice: the ranks of the exported model.
        model: base model; None means the one that the adapter names.
        say: gets a line for what the user should know.

    Raises:
        InputError: a model that is not one of those; all that `merge`, `export_lora` and `load_task` refuse.
    """
    unknown = [name for name in models if name not in MODELS]
    if unknown or not models:
        raise InputError(f"models must be some of {', '.join(MODELS)}, got {', '.join(unknown) or 'none'}")
    saved = read_adapter(adapter, model)
    reason = why_not_plain(saved.pooling, base_config(saved.base, saved.options) or {})
    # if only this one is asked for, merge refuses it below
    if reason and "merged" in models and len(models) > 1:
        say(f"merged: left out, {reason}")
        models = [name for name in models if name != "merged"]
    measure = _measure_of(asked, saved.kind, saved.class_names(), adapter, say)
    if measure.kind == "preference" and (without := [name for name in models if name in ("base", "merged")]):
        # if only these are asked for, scoring refuses them below
        if len(without) < len(models):
            say(f"{', '.join(without)}: left out, preference pairs are scored by an adapter against its base")
            models = [name for name in models if name not in without]
    tokenizer = tokenizer_of(saved)
    results = {}
    with tempfile.TemporaryDirectory(prefix="lrlora-") as scratch:
        for name in MODELS:
            if name in models:
                loaded = _load(name, saved, Path(scratch) / name, choice, say)
                results[name] = measure.score(loaded, tokenizer)
    return Comparison(measure.task, measure.source, measure.metric, measure.count, results)


def score_model(folder: str, asked: TrainConfig | Measure, say: Say = lambda line: None) -> Comparison:
    """Score a model without an adapter on one task.

    Args:
        folder: a model of transformers with the head that the task needs.
        asked: as in `compare`.
        say: gets a line for what the user should know.

    Raises:
        InputError: a model without the head that the task needs, or with other classes; all that `load_task` and
            transformers refuse.
    """
    described = read_json(Path(folder).expanduser() / names.CONFIG)
    architectures = described.get("architectures") or ()
    is_causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    is_of_images = any("ForImageClassification" in name for name in architectures)
    classes = None if is_causal else names_in_config(described)
    is_number = classes is not None and len(classes) == 1
    kind: Kind = "causal" if is_causal else "regression" if is_number else "classification"
    kind = IMAGES if is_of_images else kind
    measure = _measure_of(asked, kind, classes, folder, say)
    task_type = "CAUSAL_LM" if measure.kind in LANGUAGE else IMAGE_CLS if is_of_images else "SEQ_CLS"
    loaded = load_base(folder, task_type).eval()
    if loaded.new_parameters:
        raise InputError(
            f"{folder} lacks {loaded.new_parameters[0]} ({len(loaded.new_parameters)} such tensors), which would be "
            "random; pass a model with the head that the task needs, such as lrlora merge writes"
        )
    scores = measure.score(loaded, load_processor(folder) if is_of_images else load_tokenizer(folder))
    return Comparison(measure.task, measure.source, measure.metric, measure.count, {"model": scores})


def _measure_of(
    asked: TrainConfig | Measure, kind: Kind | None, labels: Sequence[str] | None, whose: str, say: Say
) -> Measure:
    """What a model of this kind and with these classes is measured by."""
    measure = held_out(asked, kind, labels, whose, say) if isinstance(asked, TrainConfig) else asked
    if kind is not None and not _is_for(kind, measure.kind):
        raise InputError(f"{measure.task} needs a {measure.kind} model; {whose} is one of {kind}")
    return measure


def _is_for(kind: Kind, other: Kind) -> bool:
    """Whether a model of one kind can be measured by rows of the other: a causal model by preference pairs."""
    return kind == other or (kind == "causal" and other in LANGUAGE)


def held_out(config: TrainConfig, kind: Kind | None, labels: Sequence[str] | None, whose: str, say: Say) -> TaskMeasure:
    """The evaluation rows of the task that a config names.

    Args:
        config: settings that name a task, see `run_config`.
        kind: of the model; None where it is not known.
        labels: names of the model's classes.
        whose: the adapter or model.
        say: gets a line for what the user should know.

    Raises:
        InputError: a model of another kind than the config says; all that `load_task` refuses.
    """
    if kind is not None and config.kind is not None and not _is_for(kind, config.kind):
        raise InputError(f"{whose} is a model of {kind}, got --kind {config.kind}; leave --kind out")
    # the rows say whether a causal model is measured by chats or by pairs
    kind = config.kind if kind == "causal" else kind
    source = dataclasses.replace(config.data_source(), kind=kind)
    if config.eval_data is not None:
        task = load_evaluation(dataclasses.replace(source, data=config.eval_data), kind, labels)
    else:
        task = load_task(source, labels)
        _tell_of_changes(whose, config, task, say)
    check_kind(config, task)
    for note in task.notes:
        say(note)
    return TaskMeasure(task, config.max_length, config.template, config.batch_size, is_bf16(config.precision), say)


def _tell_of_changes(whose: str, config: TrainConfig, task: TaskData, say: Say) -> None:
    """Say it where a run's own rows are no longer those that it was trained on and measured on."""
    runs = [] if is_model(whose) else run_around(read_adapter(whose).folder)
    for run in runs:
        before = (RunFolder(run).inputs or {}).get("data")
        is_its_own = run_config(whose).data_source() == config.data_source()
        if is_its_own and before is not None and before != digest_of_rows(task):
            say(f"the rows of {config.data or task.name} have changed since {run} was trained; these are new numbers")


def _load(name: str, saved: AdapterFolder, scratch: Path, choice: RankChoice | None, say: Say) -> Any:
    if name == "merged":
        merge(str(saved.folder), scratch, model=saved.base, say=say)
        # as the adapter's base, but in its full weights
        options = dataclasses.replace(saved.options, quantization="none", revision=None)
        return saved.auto_class.from_pretrained(scratch, **options.loading()).eval()
    if name == "exported":
        made = export_lora(str(saved.folder), scratch, choice, model=saved.base)
        say(f"exported: {made.parameters:,} parameters, relative error {made.relative_error:.3g}")
        return load_adapter(str(scratch), saved.base, saved.options)
    if name == "adapter":
        return load_adapter(str(saved.folder), saved.base, saved.options)
    # a base without a head gets a random one
    set_seed(0)
    return load_base_of(saved).eval()
