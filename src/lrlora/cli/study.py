"""`lrlora study`: arms x tasks x learning rates x seeds, from a study file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from lrlora.cli.flags import parse, quiet_libraries


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class StudyArguments:
    """Flags of `lrlora study`."""

    study: str = field(metadata={"help": "study file, YAML: docs/study.md says what stands in it"})
    out: Optional[str] = _flag(None, "folder of the results; runs/NAME if left out. The same command goes on there")
    data_root: Optional[str] = _flag(None, "folder that the data of the tasks are relative to; instead of the study's")
    workers: Optional[int] = _flag(None, "cells at a time; 1 if left out, with --ray as many as the cluster holds")
    threads: Optional[int] = _flag(None, "CPU threads of each; the cores shared out if left out")
    ray: Optional[str] = field(
        default=None,
        metadata={"help": "run on a Ray cluster: its address; without one, a cluster of this machine", "nargs": "?",
                  "const": "local"},
    )  # fmt: skip
    retry_failed: bool = _flag(False, "run failed cells again")
    dry_run: bool = _flag(False, "run nothing: cells, parameters, and estimates of memory and hours")
    json: bool = _flag(False, "print the result as JSON")
    debug: bool = _flag(False, "show a traceback on errors")


def run(arguments: list[str]) -> None:
    """Run what has not run yet, and print the summary."""
    example = "lrlora study studies/language-understanding-small.yaml --data_root ./glue --workers 2"
    chosen = parse(StudyArguments, "study", arguments, example, positional="study")
    quiet_libraries()
    from lrlora.study import Machines, read_study, run_study
    from lrlora.study.plan import with_root

    study = with_root(read_study(chosen.study), chosen.data_root)
    workers = chosen.workers if chosen.workers is not None else (0 if chosen.ray else 1)
    machines = Machines(workers, chosen.threads, chosen.ray)
    out = Path(chosen.out or f"runs/{study.study}")
    rows = run_study(study, out, machines, chosen.retry_failed)
    print(json.dumps(rows, indent=2) if chosen.json else len(rows))
