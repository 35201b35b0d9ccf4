"""`lrlora evaluate`: the task metric of a base, its adapter, and what it is merged or exported to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from lrlora.cli import mt_bench
from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.settings import flags_of, given, values_of
from lrlora.cli.show import print_table, tell_of_changes
from lrlora.data.embedded import model_folder
from lrlora.errors import InputError
from lrlora.evaluation.commonsense import Suite, load_suite
from lrlora.evaluation.harness import Harness, HarnessOptions, load_harness
from lrlora.export.compare import MODELS, Comparison, compare, run_config, score_model
from lrlora.export.lora.choose import RankChoice
from lrlora.saved.adapter import read_adapter
from lrlora.saved.local import is_model, run_around
from lrlora.saved.run import RunFolder
from lrlora.training import processes
from lrlora.training.config import TrainConfig
from lrlora.training.fields import typed_fields
from lrlora.training.model import is_bf16


@dataclass
class EvaluateArguments:
    """Flags of `lrlora evaluate`."""

    adapter: str = field(metadata={"help": "an adapter folder, a run folder that holds one, or a model on its own"})
    models: list[str] = field(
        default_factory=lambda: list(MODELS[:3]), metadata={"help": f"which models: some of {', '.join(MODELS)}"}
    )
    data: Optional[str] = field(
        default=None,
        metadata={"help": "a file, all of whose rows are scored, or the evaluation rows of a folder or hub dataset; "
                          "the run's own held-out rows if left out"},
    )  # fmt: skip
    task: Optional[str] = field(default=None, metadata={"help": "as in lrlora train; the run's own if left out"})
    subset: Optional[str] = field(default=None, metadata={"help": "configuration of a hub dataset"})
    kind: Optional[str] = field(
        default=None, metadata={"help": "classification, regression, causal, preference or image-classification"}
    )
    text_columns: Optional[list[str]] = field(
        default=None, metadata={"help": "one or two columns of text; the run's if left out"}
    )
    label_column: Optional[str] = field(default=None, metadata={"help": "column of the label; the run's if left out"})
    image_column: Optional[str] = field(default=None, metadata={"help": "column of images; the run's if left out"})
    bad_images: Optional[str] = field(
        default=None, metadata={"help": "images that cannot be decoded: refuse or skip; the run's if left out"}
    )
    max_length: Optional[int] = field(default=None, metadata={"help": "tokens of a row at most; the run's if left out"})
    eval_rows: Optional[int] = field(default=None, metadata={"help": "largest number of evaluation rows"})
    batch_size: Optional[int] = field(default=None, metadata={"help": "rows scored at once; the run's if left out"})
    commonsense: list[str] = field(
        default_factory=list, metadata={"help": "commonsense tasks to score instead, such as arc_c obqa: --data is the "
                                        "folder of their TASK_test.jsonl(.gz), or hub; --eval_rows of each"}
    )  # fmt: skip
    lm_eval: list[str] = field(
        default_factory=list, metadata={"help": "tasks of lm-eval to score instead, such as hellaswag arc_easy, with "
                                        "its own num_fewshot, limit and so on; needs the hub or --include_path"}
    )  # fmt: skip
    mt_bench: Optional[str] = field(
        default=None,
        metadata={"help": "a file of questions in FastChat's format (jsonl, .gz): the model, one that was trained on "
                          "chats, answers both turns, and --judge_model grades them"},
    )  # fmt: skip
    how: str = field(default="likelihood", metadata={"help": "of commonsense tasks: likelihood or generation"})
    prompt: str = field(
        default="instruction",
        metadata={"help": "of their likelihood: instruction, as in training, or question, as lm-eval asks"},
    )
    energy: Optional[float] = field(default=None, metadata={"help": "of the exported model, as in lrlora export"})
    rank: Optional[int] = field(default=None, metadata={"help": "of the exported model, as in lrlora export"})
    budget: Optional[int] = field(default=None, metadata={"help": "of the exported model, as in lrlora export"})
    model: Optional[str] = field(
        default=None, metadata={"help": "base model; the one that the adapter names if left out"}
    )
    json: bool = field(default=False, metadata={"help": "print the result as JSON"})
    debug: bool = field(default=False, metadata={"help": "show a traceback on errors"})


def run(arguments: list[str]) -> None:
    """Score, and print the table."""
    fields = typed_fields(EvaluateArguments), typed_fields(HarnessOptions), typed_fields(mt_bench.MtBenchOptions)
    flags = flags_of("Arguments", fields[0], [*fields[1], *fields[2]])
    chosen: Any = parse(flags, "evaluate", arguments, "lrlora evaluate runs/demo", positional="adapter")
    asked_for = mt_bench.MtBenchOptions(**values_of(chosen, fields[2]))
    if chosen.mt_bench:
        _refuse_others(chosen, ("adapter", "mt_bench", "model", "json", "debug", *(each.name for each in fields[2])))
        quiet_libraries()
        mt_bench.run(chosen.adapter, chosen.mt_bench, asked_for, chosen.model, chosen.json)
        return
    if flags_given := given(asked_for):
        raise InputError(f"--{next(iter(flags_given))} is of --mt_bench FILE, which is not there; leave it out")
    chosen.adapter = model_folder(chosen.adapter)
    harness = HarnessOptions(**{each.name: getattr(chosen, each.name) for each in fields[1]})
    if (flags_given := given(harness)) and not chosen.lm_eval:
        raise InputError(f"--{next(iter(flags_given))} is of --lm_eval TASK ..., which is not there; leave it out")
    if chosen.lm_eval and (chosen.commonsense or chosen.data or chosen.eval_rows):
        raise InputError("--lm_eval has its own rows; leave --commonsense, --data and --eval_rows out")
    choice = RankChoice(chosen.energy, chosen.rank, chosen.budget)
    quiet_libraries()
    names = (
        "data", "task", "subset", "kind", "text_columns", "label_column", "eval_rows", "max_length", "batch_size",
        "image_column", "bad_images",
    )  # fmt: skip
    if chosen.lm_eval:
        asked, show = _harness(chosen, harness), _print_harness
    else:
        config = run_config(chosen.adapter, **{name: getattr(chosen, name) for name in names})
        asked, show = (_suite(chosen, config), _print_suite) if chosen.commonsense else (config, _print_task)
    tell_of_changes([chosen.adapter])
    if is_model(chosen.adapter):
        found = score_model(chosen.adapter, asked, processes.tell)
    else:
        found = compare(chosen.adapter, asked, chosen.models, choice, chosen.model, processes.tell)
    if chosen.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        show(found)


def _refuse_others(chosen: Any, own: Sequence[str]) -> None:
    """Refuse flags that --mt_bench does not read."""
    if others := [name for name in given(chosen) if name not in own]:
        raise InputError(f"--{others[0]} is not of --mt_bench, which answers its own questions; leave it out")


def _harness(chosen: Any, options: HarnessOptions) -> Harness:
    runs = [] if is_model(chosen.adapter) else run_around(read_adapter(chosen.adapter, chosen.model).folder)
    settings = RunFolder(runs[0]).settings if runs else {}
    batch_size = chosen.batch_size or settings.get("batch_size", 8)
    return load_harness(chosen.lm_eval, options, batch_size, is_bf16(settings.get("precision", "auto")), processes.tell)


def _suite(chosen: Any, config: TrainConfig) -> Suite:
    fields = {
        "how": chosen.how, "prompt": chosen.prompt, "template": config.template, "batch_size": config.batch_size,
        "is_bf16": is_bf16(config.precision),
    }  # fmt: skip
    data = config.eval_data or config.data
    if data is None:
        raise InputError("--commonsense needs --data: the folder of the tasks' TASK_test.jsonl(.gz), or hub")
    return load_suite(data, tuple(chosen.commonsense), chosen.eval_rows, **fields)


def _print_task(found: Comparison) -> None:
    """A line per model, a column per metric."""
    metrics = list(next(iter(found.results.values())))
    print_table(
        f"{found.task}: {found.rows} held-out rows",
        ("model", *metrics),
        ((name, *(f"{scores[metric]:.4f}" for metric in metrics)) for name, scores in found.results.items()),
    )


def _print_suite(found: Comparison) -> None:
    _print_metrics(found, f"{found.task}: accuracy by {found.source}, {found.rows} test rows")


def _print_harness(found: Comparison) -> None:
    _print_metrics(found, f"{found.task}: {found.source}, {found.rows} rows")


def _print_metrics(found: Comparison, title: str) -> None:
    """A line per metric of each task, a column per model."""
    print_table(
        title,
        ("", *found.results),
        (
            (metric, *(f"{scores[metric]:.4f}" for scores in found.results.values()))
            for metric in next(iter(found.results.values()))
        ),
    )
