"""`lrlora ranks`: the learned rank of every layer of a saved adapter."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Optional

from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.show import print_ranks, print_warnings
from lrlora.errors import InputError
from lrlora.export import RankChoice, rank_pattern
from lrlora.training.model import load_adapter
from lrlora.tuner.ranks import layer_ranks, rank_warnings


@dataclass
class RanksArguments:
    """Flags of `lrlora ranks`."""

    adapter: str = field(metadata={"help": "an adapter folder, or a run folder that holds one"})
    model: Optional[str] = field(
        default=None, metadata={"help": "base model; the one that the adapter names if left out"}
    )
    rank_pattern: Optional[str] = field(
        default=None,
        metadata={"help": "JSON file to write, with the ranks as fields of LoraConfig"},
    )
    energy: Optional[float] = field(default=None, metadata={"help": "of rank_pattern, as in lrlora export"})
    rank: Optional[int] = field(default=None, metadata={"help": "of rank_pattern, as in lrlora export"})
    budget: Optional[int] = field(default=None, metadata={"help": "of rank_pattern, as in lrlora export"})
    json: bool = field(default=False, metadata={"help": "print the rows as JSON"})
    debug: bool = field(default=False, metadata={"help": "show a traceback on errors"})


def run(arguments: list[str]) -> None:
    """Measure, and print the table."""
    chosen = parse(RanksArguments, "ranks", arguments, "lrlora ranks runs/demo", positional="adapter")
    choice = RankChoice(chosen.energy, chosen.rank, chosen.budget)
    quiet_libraries()
    if chosen.rank_pattern is not None:
        rank_pattern(chosen.adapter, choice, chosen.model, chosen.rank_pattern)
        print(f"{chosen.rank_pattern}: for peft.LoraConfig(**fields)")
        return
    model = load_adapter(chosen.adapter, chosen.model)
    config: Any = model.peft_config["default"]
    if config.peft_type != "LRLORA":
        raise InputError(f"{chosen.adapter} is an adapter of type {config.peft_type.value}, not LRLORA")
    rows = layer_ranks(model)
    if chosen.json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
    else:
        print_ranks(rows)
        print_warnings(rank_warnings(rows, config.phi))
