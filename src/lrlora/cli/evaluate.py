"""`lrlora evaluate`: the task metric of a base, its adapter, and what it is merged or exported to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Optional

from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.show import print_table, tell_of_changes
from lrlora.errors import InputError
from lrlora.evaluation.commonsense import Suite, load_suite
from lrlora.export.compare import MODELS, Comparison, compare, run_config, score_model
from lrlora.export.lora.choose import RankChoice
from lrlora.saved.local import is_model
from lrlora.training import processes
from lrlora.training.config import TrainConfig
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
    kind: Optional[str] = field(default=None, metadata={"help": "classification, regression, causal or preference"})
    text_columns: Optional[list[str]] = field(
        default=None, metadata={"help": "one or two columns of text; the run's if left out"}
    )
    label_column: Optional[str] = field(default=None, metadata={"help": "column of the label; the run's if left out"})
    max_length: Optional[int] = field(default=None, metadata={"help": "tokens of a row at most; the run's if left out"})
    eval_rows: Optional[int] = field(default=None, metadata={"help": "largest number of evaluation rows"})
    batch_size: Optional[int] = field(default=None, metadata={"help": "rows scored at once; the run's if left out"})
    commonsense: list[str] = field(
        default_factory=list, metadata={"help": "commonsense tasks to score instead, such as arc_c obqa: --data is the "
                                        "folder of their TASK_test.jsonl(.gz), or hub; --eval_rows of each"}
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
    chosen = parse(EvaluateArguments, "evaluate", arguments, "lrlora evaluate runs/demo", positional="adapter")
    choice = RankChoice(chosen.energy, chosen.rank, chosen.budget)
    quiet_libraries()
    names = (
        "data", "task", "subset", "kind", "text_columns", "label_column", "eval_rows", "max_length", "batch_size"
    )  # fmt: skip
    config = run_config(chosen.adapter, **{name: getattr(chosen, name) for name in names})
    tell_of_changes([chosen.adapter])
    asked, show = (_suite(chosen, config), _print_suite) if chosen.commonsense else (config, _print_task)
    if is_model(chosen.adapter):
        found = score_model(chosen.adapter, asked, processes.tell)
    else:
        found = compare(chosen.adapter, asked, chosen.models, choice, chosen.model, processes.tell)
    if chosen.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        show(found)


def _suite(chosen: EvaluateArguments, config: TrainConfig) -> Suite:
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
    """A line per task, a column per model."""
    print_table(
        f"{found.task}: accuracy by {found.source}, {found.rows} test rows",
        ("", *found.results),
        (
            (metric, *(f"{scores[metric]:.4f}" for scores in found.results.values()))
            for metric in next(iter(found.results.values()))
        ),
    )
