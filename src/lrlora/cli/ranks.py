"""`lrlora ranks`: the learned rank of every layer of runs or saved adapters."""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.show import print_mean_ranks, print_ranks, print_warnings, tell_of_changes
from lrlora.errors import InputError
from lrlora.export import RankChoice, rank_pattern
from lrlora.files import check_file, new_file
from lrlora.ranks.seeds import MEASURES, layer_means
from lrlora.report.findings import findings
from lrlora.saved.results import Run, read_run


@dataclass
class RanksArguments:
    """Flags of `lrlora ranks`."""

    adapters: list[str] = field(
        metadata={"help": "run folders or adapter folders; several are the seeds of one experiment"}
    )
    model: Optional[str] = field(
        default=None, metadata={"help": "base model to measure on; what the run has written, or the adapter names"}
    )
    json: bool = field(default=False, metadata={"help": "print the rows as JSON; of several, means with intervals"})
    csv: Optional[str] = field(default=None, metadata={"help": "write a line per layer and run to this file"})
    html: Optional[str] = field(default=None, metadata={"help": "write the page of `lrlora report` to this file"})
    rank_pattern: Optional[str] = field(
        default=None,
        metadata={"help": "JSON file to write, with the ranks as fields of LoraConfig"},
    )
    energy: Optional[float] = field(default=None, metadata={"help": "of rank_pattern, as in lrlora export"})
    rank: Optional[int] = field(default=None, metadata={"help": "of rank_pattern, as in lrlora export"})
    budget: Optional[int] = field(default=None, metadata={"help": "of rank_pattern, as in lrlora export"})
    debug: bool = field(default=False, metadata={"help": "show a traceback on errors"})


def run(arguments: list[str]) -> None:
    """Read or measure, and print the table."""
    chosen = parse(RanksArguments, "ranks", arguments, "lrlora ranks runs/demo", positional="adapters")
    choice = RankChoice(chosen.energy, chosen.rank, chosen.budget)
    quiet_libraries()
    if chosen.rank_pattern is not None:
        if len(chosen.adapters) != 1:
            raise InputError(f"--rank_pattern takes the ranks of one adapter, got {len(chosen.adapters)}")
        rank_pattern(chosen.adapters[0], choice, chosen.model, chosen.rank_pattern)
        tell_of_changes(chosen.adapters)
        print(f"{chosen.rank_pattern}: for peft.LoraConfig(**fields)")
        return
    runs = [read_run(folder, chosen.model) for folder in chosen.adapters]
    tell_of_changes(chosen.adapters)
    read = [place for run in runs for place in run.sources(chosen.model)]
    for file in filter(None, (chosen.csv, chosen.html)):
        check_file(Path(file), read)
    found = findings(runs)
    if chosen.csv:
        write_csv(runs, Path(chosen.csv))
    if chosen.html:
        from lrlora.report.page import page

        with new_file(Path(chosen.html)) as beside:
            beside.write_text(page(runs, found, []), encoding="utf-8")
    if chosen.json:
        print(json.dumps(as_json(runs), indent=2))
        return
    if len(runs) == 1:
        print_ranks(runs[0].rows)
    else:
        print_mean_ranks(found.table, len(runs))
    print(f"beyond LoRA: {found.beyond}")
    print(f"attention - MLP: {found.kinds['stable_rank'].verdict}; of the null SR(BA): "
          f"{found.kinds['stable_rank_ba'].verdict}")  # fmt: skip
    print_warnings([*found.warnings, *(f"the runs differ in more than their seed: {text}" for text in found.mixed)])


def as_json(runs: list[Run]) -> list[dict[str, Any]]:
    """The rows of one run; of several, a mean with "_low", "_high" and the number of seeds per measure."""
    if len(runs) == 1:
        return [row.as_dict() for row in runs[0].rows]
    lines = []
    for line in layer_means([run.rows for run in runs]):
        flat = {key: value for key, value in line.items() if key not in MEASURES}
        for name in MEASURES:
            value = line[name]
            parts = (None, None, None) if value is None else (value.mean, value.low, value.high)
            flat |= dict(zip((name, f"{name}_low", f"{name}_high"), parts, strict=True))
        lines.append({**flat, "seeds": len(runs)})
    return lines


def write_csv(runs: list[Run], path: Path) -> None:
    """A line per layer and run."""
    names = [f.name for f in dataclasses.fields(runs[0].rows[0])]
    with new_file(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *names])
        for one in runs:
            writer.writerows([str(one.folder), *row.as_dict().values()] for row in one.rows)
