"""`lrlora train`: an adapter from a task, in a run folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Optional

from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.settings import flags_of, is_run, values_of, words_of_file
from lrlora.cli.show import print_ranks, print_table, print_warnings
from lrlora.errors import InputError
from lrlora.saved import RunFolder, names
from lrlora.saved.hub import check_push, push
from lrlora.training import RunResult, TrainConfig, processes, train
from lrlora.training.arguments import passed_fields, why_not
from lrlora.training.config import OURS, setting_fields
from lrlora.training.fields import typed_fields


@dataclasses.dataclass
class _More:
    """Flags that are no settings of the run."""

    config: Optional[str] = dataclasses.field(
        default=None,
        metadata={"help": "a YAML or JSON file of these flags, or a run folder to repeat; what is typed overrides it"},
    )
    push_to_hub: Optional[str] = dataclasses.field(
        default=None, metadata={"help": "send the adapter to this model repository of the hub, NAME or OWNER/NAME"}
    )
    public: bool = dataclasses.field(
        default=False, metadata={"help": "make that repository public; a new one is private"}
    )
    verbose: bool = dataclasses.field(
        default=False, metadata={"help": "print how the adapted layers are computed, and why"}
    )
    json: bool = dataclasses.field(default=False, metadata={"help": "print the result as JSON"})
    debug: bool = dataclasses.field(default=False, metadata={"help": "show a traceback on errors"})


def run(arguments: list[str]) -> None:
    """Train, and print the result."""
    quiet_libraries()
    settings, passed = [each for each in setting_fields() if each.name != "trainer"], passed_fields(OURS)
    flags = parse(
        flags_of("TrainArguments", [*settings, *passed], typed_fields(_More), hidden=passed),
        "train",
        arguments,
        "lrlora train --data ./rows --task sst2 --out runs/sst2",
        words_of_file=lambda file: words_of_file(file, [*settings, *passed]),
        why_not=why_not,
        more=_said_of(passed),
    )
    if flags.config and is_run(flags.config) and flags.out is None:
        raise InputError(f"--config {flags.config} is a run: pass --out, the folder of the one that repeats it")
    if flags.push_to_hub or flags.public:
        processes.in_first(lambda: check_push(flags.push_to_hub, flags.public))
    given = {name: value for name, value in values_of(flags, passed).items() if value is not None}
    config = TrainConfig.of(**values_of(flags, settings), trainer=given)
    result = train(config, verbose=flags.verbose)
    if not processes.is_first():
        return
    if flags.json:
        print(json.dumps(_as_json(result), indent=2))
    else:
        _print_result(result)
    push(RunFolder(result.folder).adapter, flags.push_to_hub, flags.public, processes.tell)


def _said_of(passed: Sequence[dataclasses.Field[Any]]) -> str:
    return (
        "transformers.TrainingArguments has these, trl.SFTConfig for language models, and trl.DPOConfig for preference "
        f"pairs; each is a flag under its own name: {', '.join(sorted(each.name for each in passed))}"
    )


def _as_json(result: RunResult) -> dict[str, Any]:
    compared = None if result.compared is None else result.compared.metrics
    ranks = [row.as_dict() for row in result.ranks]
    return {"folder": str(result.folder), "metrics": result.metrics, "ranks": ranks, "compared": compared}


def _print_result(result: RunResult) -> None:
    if result.ranks:
        print_ranks(result.ranks)
    first = result.metrics
    print_table(
        f"{first['task']}: {first['train_rows']} rows to train on, {first['eval_rows']} held out",
        ("method", first["metric"], "eval loss", "parameters", "steps", "time"),
        (
            (
                {"lrlora": "LR-LoRA", "lora": "LoRA"}[m["method"]],
                f"{m[m['metric']]:.4f}",
                f"{m['loss']:.4f}",
                f"{m['trainable_parameters']:,}",
                m["steps"],
                f"{m['wall_s']:.0f} s",
            )
            for m in (run.metrics for run in (result, result.compared) if run is not None)
        ),
    )
    print_warnings(result.warnings)
    predicted = [names.PREDICTIONS] if "skipped_images" in first else []
    written = [
        f"{names.ADAPTER}/",
        names.METRICS,
        names.LOG,
        *predicted,
        *([names.RANKS, names.PICTURE] if result.ranks else []),
    ]
    print(f"{result.folder}: {', '.join(written)}")
