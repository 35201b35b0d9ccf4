"""`lrlora merge`: a checkpoint of plain transformers from an adapter and its base."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Optional

from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.show import print_table, print_warnings, tell_of_changes
from lrlora.errors import InputError
from lrlora.export.merging.merge import merge
from lrlora.export.merging.rounding import rounding_warnings
from lrlora.saved.hub import check_push, push
from lrlora.training import processes


@dataclass
class MergeArguments:
    """Flags of `lrlora merge`."""

    adapter: str = field(metadata={"help": "an adapter folder, or a run folder that holds one"})
    out: Optional[str] = field(default=None, metadata={"help": "folder to write the checkpoint to"})
    dtype: Optional[str] = field(
        default=None, metadata={"help": "float32, float16 or bfloat16; the base's own if left out"}
    )
    model: Optional[str] = field(
        default=None, metadata={"help": "base model; the one that the adapter names if left out"}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "replace an older checkpoint; a folder with other files is refused"}
    )
    push_to_hub: Optional[str] = field(
        default=None, metadata={"help": "send the checkpoint to this model repository of the hub, NAME or OWNER/NAME"}
    )
    public: bool = field(default=False, metadata={"help": "make that repository public; a new one is private"})
    json: bool = field(default=False, metadata={"help": "print the result as JSON"})
    debug: bool = field(default=False, metadata={"help": "show a traceback on errors"})


def run(arguments: list[str]) -> None:
    """Merge, and print what rounding lost."""
    chosen = parse(MergeArguments, "merge", arguments, "lrlora merge runs/demo --out merged", positional="adapter")
    if chosen.out is None:
        raise InputError("lrlora merge needs --out, a folder to write to")
    check_push(chosen.push_to_hub, chosen.public)
    quiet_libraries()
    made = merge(
        chosen.adapter,
        chosen.out,
        chosen.dtype,
        chosen.model,
        chosen.overwrite,
        processes.tell,
    )
    tell_of_changes([chosen.adapter])
    if chosen.json:
        print(json.dumps(made.as_dict(), indent=2))
    else:
        print_table(
            "what rounding lost of each update: |cast(W0 + dW) - (W0 + dW)| / |dW|",
            ("layer", "stored as", "|dW|", "lost"),
            ((row.layer, row.dtype, f"{row.norm:.3g}", f"{row.rounding_loss:.2%}") for row in made.layers),
            words=2,
        )
        print(f"{made.folder}: {made.architecture}, loads with transformers, without lrlora")
    print_warnings(rounding_warnings(made.layers))
    push(made.folder, chosen.push_to_hub, chosen.public, processes.tell)
