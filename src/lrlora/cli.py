"""The command `lrlora VERB`: reads flags, calls the library, prints. Results on stdout, progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Optional

from lrlora.errors import InputError

if TYPE_CHECKING:
    from lrlora.training import RunResult
    from lrlora.tuner.ranks import LayerRank

USAGE = """usage: lrlora VERB [flags]

  train   train an adapter: a run folder with adapter, metrics and learned ranks
  ranks   the learned rank of every layer of a saved adapter

`lrlora VERB --help` lists the flags of a verb. Without any, `lrlora train` runs the demo:

  lrlora train
"""

# import names of what the extra "train" brings
_EXTRAS = ("accelerate", "datasets", "matplotlib", "rich", "scipy", "sklearn")


@dataclass
class RanksArguments:
    """Flags of `lrlora ranks`."""

    adapter: str = field(metadata={"help": "an adapter folder, or a run folder that holds one"})
    model: Optional[str] = field(
        default=None, metadata={"help": "base model; the one that the adapter names if left out"}
    )
    json: bool = field(default=False, metadata={"help": "print the rows as JSON"})
    debug: bool = field(default=False, metadata={"help": "show a traceback on errors"})


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; the exit status is 0, 2 for an error of the user's input, 1 for one of ours, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verbs = {"train": _train, "ranks": _ranks}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        from lrlora import __version__

        print(__version__)
        return 0
    is_debugging = "--debug" in arguments
    try:
        if arguments[0] not in verbs:
            raise InputError(f"no verb {arguments[0]!r}; there are: {', '.join(verbs)}")
        verbs[arguments[0]](arguments[1:])
        return 0
    except InputError as error:
        return _complain(error, 2, is_debugging)
    except KeyboardInterrupt:
        print("lrlora: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output, `head` say, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        needed = InputError(f'lrlora {arguments[0]} needs {error.name}: pip install "lrlora[train]"')
        return _complain(needed if error.name in _EXTRAS else error, 2 if error.name in _EXTRAS else 1, is_debugging)
    except Exception as error:
        return _complain(error, 1, is_debugging)


def _train(arguments: list[str]) -> None:
    from lrlora.training import TrainConfig, train

    config = _parse(TrainConfig, "train", arguments, "lrlora train --data ./rows --task sst2 --out runs/sst2")
    _quiet_libraries()
    result = train(config)
    if config.json:
        print(json.dumps(_as_json(result), indent=2))
    else:
        _print_result(result)


def _ranks(arguments: list[str]) -> None:
    from lrlora.training.model import load_adapter
    from lrlora.tuner.ranks import layer_ranks, rank_warnings

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--adapter", *arguments]
    chosen = _parse(RanksArguments, "ranks", arguments, "lrlora ranks runs/demo")
    _quiet_libraries()
    model = load_adapter(chosen.adapter, chosen.model)
    config: Any = model.peft_config["default"]
    if config.peft_type != "LRLORA":
        raise InputError(f"{chosen.adapter} is an adapter of type {config.peft_type.value}, not LRLORA")
    rows = layer_ranks(model)
    if chosen.json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
    else:
        _print_ranks(rows)
        _print_warnings(rank_warnings(rows, config.phi))


def _parse(cls: Any, verb: str, arguments: list[str], example: str) -> Any:
    from transformers import HfArgumentParser

    parser = HfArgumentParser(cls, prog=f"lrlora {verb}", epilog=f"example: {example}", allow_abbrev=False)

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; see lrlora {verb} --help")

    parser.error = refuse
    chosen, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        refuse(f"no such flag: {unknown[0]}")
    return chosen


def _quiet_libraries() -> None:
    import logging
    import warnings

    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("httpx").setLevel(logging.ERROR)


def _complain(error: Exception, status: int, is_debugging: bool) -> int:
    if is_debugging:
        traceback.print_exc()
    message = " ".join(str(error).split()) or type(error).__name__
    hint = "" if status == 2 or is_debugging else " (an error of lrlora or below it: run again with --debug)"
    name = "" if status == 2 else f"{type(error).__name__}: "
    print(f"lrlora: {name}{message}{hint}", file=sys.stderr)
    return status


def _as_json(result: RunResult) -> dict[str, Any]:
    compared = None if result.compared is None else result.compared.metrics
    ranks = [row.as_dict() for row in result.ranks]
    return {"folder": str(result.folder), "metrics": result.metrics, "ranks": ranks, "compared": compared}


def _print_result(result: RunResult) -> None:
    from rich.console import Console
    from rich.table import Table

    if result.ranks:
        _print_ranks(result.ranks)
    first = result.metrics
    table = Table(title=f"{first['task']}: {first['train_rows']} rows to train on, {first['eval_rows']} held out")
    for heading in ("method", first["metric"], "eval loss", "parameters", "steps", "time"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for run in (result, result.compared):
        if run is not None:
            m = run.metrics
            table.add_row(
                {"lrlora": "LR-LoRA", "lora": "LoRA"}[m["method"]],
                f"{m[m['metric']]:.4f}",
                f"{m['loss']:.4f}",
                f"{m['trainable_parameters']:,}",
                str(m["steps"]),
                f"{m['wall_s']:.0f} s",
            )
    Console().print(table)
    _print_warnings(result.warnings)
    names = ["adapter/", "metrics.json", *(["ranks.json", "ranks.png"] if result.ranks else [])]
    print(f"{result.folder}: {', '.join(names)}")


def _print_ranks(rows: list[LayerRank]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="learned rank of every layer; SR(BA) is the null, what LoRA would have")
    for heading in ("layer", "kind", "SR(dW)", "SR(BA)", "effective", "numerical", "constant", "RMS/tau", "|dW|/|W0|"):
        table.add_column(heading, justify="left" if heading in ("layer", "kind") else "right")
    for row in rows:
        table.add_row(
            row.layer,
            row.kind,
            f"{row.stable_rank:.2f}",
            f"{row.stable_rank_ba:.2f}",
            f"{row.effective_rank:.1f}",
            str(row.numerical_rank),
            f"{row.constant_share:.1%}",
            f"{row.rms_over_tau:.2f}",
            f"{row.relative_norm:.3f}",
        )
    # a pipe has no width: rich would cut the names of the layers at 80 columns
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _print_warnings(messages: list[str]) -> None:
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)
