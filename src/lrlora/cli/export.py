"""`lrlora export`: plain LoRA from an adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Optional

from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.show import print_table, tell_of_changes
from lrlora.errors import InputError
from lrlora.export import LoraExport, RankChoice, export_lora
from lrlora.saved.hub import check_push, push
from lrlora.training import processes


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


def run(arguments: list[str]) -> None:
    """Export, and print what truncation lost."""
    example = "lrlora export runs/demo --out lora --energy 0.95"
    chosen = parse(ExportArguments, "export", arguments, example, positional="adapter")
    choice = RankChoice(chosen.energy, chosen.rank, chosen.budget, chosen.uniform)
    if chosen.out is None:
        raise InputError("lrlora export needs --out, a folder to write to")
    check_push(chosen.push_to_hub, chosen.public)
    quiet_libraries()
    made = export_lora(chosen.adapter, chosen.out, choice, chosen.model, chosen.overwrite, processes.tell)
    tell_of_changes([chosen.adapter])
    if chosen.json:
        print(json.dumps(made.as_dict(), indent=2))
    else:
        _print(made)
    push(made.folder, chosen.push_to_hub, chosen.public, processes.tell)


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
