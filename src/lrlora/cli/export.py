"""`lrlora export`: plain LoRA from an adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Optional

from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.settings import given
from lrlora.cli.show import print_table, tell_of_changes
from lrlora.errors import InputError
from lrlora.export import LoraExport, RankChoice, export_lora
from lrlora.export.compare import run_config
from lrlora.export.lora.servers import serving
from lrlora.export.tolerance.rows import HALF
from lrlora.export.tolerance.smallest import SmallestLora, smallest_lora
from lrlora.saved.hub import check_push, push
from lrlora.saved.updates import adapter_settings
from lrlora.training import processes
from lrlora.tuner.names import kind_of


@dataclass
class ExportArguments:
    """Flags of `lrlora export`."""

    adapter: str = field(metadata={"help": "an adapter folder, or a run folder that holds one"})
    out: Optional[str] = field(default=None, metadata={"help": "folder to write the LoRA adapter to"})
    energy: Optional[float] = field(
        default=None, metadata={"help": "fraction of |dW|^2 that every layer keeps; 0.99 if nothing is chosen"}
    )
    rank: Optional[int] = field(default=None, metadata={"help": "the same rank for all layers"})
    budget: Optional[int] = field(
        default=None, metadata={"help": "parameters in all, spent where they reduce the error most"}
    )
    uniform: bool = field(
        default=False, metadata={"help": "one rank for all layers out of 8 ... 512, as some servers need it"}
    )
    for_: Optional[str] = field(
        default=None,
        metadata={
            "aliases": ["--for"],
            "help": "vllm or llama.cpp: --uniform, what this server would not take is refused, and the command that "
            "serves the export is printed",
        },
    )
    tolerance: Optional[float] = field(
        default=None,
        metadata={"help": "search for the smallest export whose metric on held-out rows is worse than the adapter's by "
                          "at most this: 0.005 of accuracy, or of the loss of causal data in nats a token; --rank is "
                          "then the largest rank of a layer"},
    )  # fmt: skip
    choose_on: str = field(
        default=HALF,
        metadata={"help": "rows that choose the size: half of the held-out rows, while the other half reports; all of "
                          "them, which report too; or a file, folder or hub dataset, while all of them report"},
    )  # fmt: skip
    choose_seed: int = field(default=0, metadata={"help": "of the draw of the half that chooses"})
    data: Optional[str] = field(
        default=None, metadata={"help": "of the search: held-out rows, as in lrlora evaluate; the run's if left out"}
    )
    task: Optional[str] = field(default=None, metadata={"help": "of the search, as in lrlora evaluate"})
    eval_rows: Optional[int] = field(default=None, metadata={"help": "of the search: largest number of held-out rows"})
    batch_size: Optional[int] = field(
        default=None, metadata={"help": "of the search: rows scored at once; the run's if left out"}
    )
    model: Optional[str] = field(
        default=None, metadata={"help": "base model; the one that the adapter names if left out"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace an older export; a folder with other files is refused"}
    )
    push_to_hub: Optional[str] = field(
        default=None, metadata={"help": "send the LoRA to this model repository of the hub, NAME or OWNER/NAME"}
    )
    public: bool = field(default=False, metadata={"help": "make that repository public; a new one is private"})
    json: bool = field(default=False, metadata={"help": "print the result as JSON"})
    debug: bool = field(default=False, metadata={"help": "show a traceback on errors"})


_OF_SEARCH = ("choose_on", "choose_seed", "data", "task", "eval_rows", "batch_size")


def run(arguments: list[str]) -> None:
    """Export, and print what truncation lost."""
    example = "lrlora export runs/demo --out lora --energy 0.95"
    chosen = parse(ExportArguments, "export", arguments, example, positional="adapter")
    if chosen.out is None:
        raise InputError("lrlora export needs --out, a folder to write to")
    check_push(chosen.push_to_hub, chosen.public)
    if chosen.tolerance is not None:
        _search(chosen, chosen.out, chosen.tolerance)
        return
    flags_given = given(chosen)
    if name := next((name for name in _OF_SEARCH if name in flags_given), None):
        raise InputError(
            f"--{name} is of a search, got no --tolerance; pass it, 0.005 for example, or leave --{name} out"
        )
    choice = RankChoice(chosen.energy, chosen.rank, chosen.budget, chosen.uniform)
    quiet_libraries()
    made = export_lora(chosen.adapter, chosen.out, choice, chosen.model, chosen.overwrite, processes.tell, chosen.for_)
    tell_of_changes([chosen.adapter])
    if chosen.json:
        print(json.dumps(made.as_dict(), indent=2))
    else:
        _print(made)
    if chosen.for_ is not None:
        config = adapter_settings(made.folder)
        command = serving(chosen.for_, config["base_model_name_or_path"], made.folder, config["r"])
        processes.tell(f"to serve it: {command}")
    push(made.folder, chosen.push_to_hub, chosen.public, processes.tell)


def _search(chosen: ExportArguments, out: str, tolerance: float) -> None:
    """Search for the smallest export, and print it."""
    for name in ("energy", "budget", "uniform", "for_"):
        if getattr(chosen, name):
            flag = name.removesuffix("_")
            raise InputError(f"--tolerance searches for the number of parameters, got --{flag} as well; leave one out")
    quiet_libraries()
    settings = {name: getattr(chosen, name) for name in ("data", "task", "eval_rows", "batch_size")}
    found = smallest_lora(
        chosen.adapter, out, tolerance, run_config(chosen.adapter, **settings), chosen.choose_on, chosen.choose_seed,
        chosen.rank, chosen.model, chosen.overwrite, processes.tell,
    )  # fmt: skip
    tell_of_changes([chosen.adapter])
    if chosen.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        _print_search(found)
    push(found.export.folder, chosen.push_to_hub, chosen.public, processes.tell)


def _print_search(found: SmallestLora) -> None:
    made, many, metric = found.export, found.rows, found.metric
    print_table(
        f"the rank that was enough, for {metric} within {found.tolerance:g}",
        ("layer", "kind", "out x in", "rank", "of the whole", "parameters", "error"),
        (
            (
                row.layer,
                kind_of(row.layer),
                f"{row.shape[0]}x{row.shape[1]}",
                row.rank,
                whole,
                f"{row.parameters:,}",
                f"{row.relative_error:.3g}",
            )
            for row, whole in zip(made.layers, found.whole_ranks, strict=True)
        ),
        words=2,
    )
    for kind, (mean, whole, count) in found.mean_ranks().items():
        print(f"mean rank of {kind}: {mean:.1f} of {whole:.1f}, {count} layers")
    for side, what in (("choose", "chose the size"), ("report", "report it")):
        own, cut = (scores[side][metric] for scores in (found.adapter, found.exported))
        print(f"{metric} on the {many[side]} rows that {what}: adapter {own:.4f}, export {cut:.4f} ({cut - own:+.4f})")
    print(f"rows: {many['from']}")
    print(_said_of_search(found))
    print(f"{made.folder}: LoRA of {made.parameters:,} parameters, relative error {made.relative_error:.3g} in all")
    print(f"{found.curve}, {found.picture}: every size that was measured")


def _said_of_search(found: SmallestLora) -> str:
    failed = "none failed" if found.failed_below is None else f"the largest that failed has {found.failed_below:,}"
    below = ", ".join(f"{size:,}" for size in found.passed_below)
    return (
        f"{found.measured} sizes were measured, by bisection and around its result: {failed}, and all from "
        f"{found.export.parameters:,} parameters on passed"
        + (f"; smaller ones that passed below one that failed: {below}" if below else "")
    )


def _print(made: LoraExport) -> None:
    print_table(
        "what truncation lost of each update: |dW - B'A'| / |dW|",
        ("layer", "out x in", "rank", "parameters", "|dW|", "error"),
        (
            (
                row.layer,
                f"{row.shape[0]}x{row.shape[1]}",
                row.rank,
                f"{row.parameters:,}",
                f"{row.norm:.3g}",
                f"{row.relative_error:.3g}",
            )
            for row in made.layers
        ),
    )
    print(f"{made.folder}: LoRA of {made.parameters:,} parameters, relative error {made.relative_error:.3g} in all")
