"""`lrlora study`: arms x tasks x learning rates x seeds, from a study file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Optional

from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.show import print_table, print_warnings
from lrlora.files import new_folder, write_json


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class StudyArguments:
    """Flags of `lrlora study`."""

    study: str = field(metadata={"help": "study file, YAML: docs/study.md says what it holds"})
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


def run(arguments: list[str]) -> int:
    """Run what has not run yet, and print the summary; exit status 1 where a cell failed, 130 or 143 if stopped."""
    example = "lrlora study studies/ablations.yaml --data_root glue"
    chosen = parse(StudyArguments, "study", arguments, example, positional="study")
    results: list[Path] = []
    terminations: list[int] = []
    try:
        with _sigterm_raises(terminations):
            return _run(chosen, results)
    except KeyboardInterrupt:
        kept = "nothing was run"
        if results and results[0].exists():
            from peft_study.store import read_rows

            done = sum(row.status != "failed" for row in read_rows(results[0]))
            kept = f"{results[0]} holds {done} finished cells; the same command goes on with the others"
        print(f"lrlora: {'terminated' if terminations else 'interrupted'}; {kept}", file=sys.stderr)
        return 128 + (signal.SIGTERM if terminations else signal.SIGINT)


@contextmanager
def _sigterm_raises(received: list[int]) -> Iterator[None]:
    """Let SIGTERM end a study as Ctrl-C does, and note it: on its way through Ray an exception loses its type."""

    def stop(number: int, frame: Any) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(chosen: StudyArguments, files: list[Path]) -> int:
    """Do what the flags say; the file of the results is added to `files` as soon as it may be written to."""
    quiet_libraries()
    from peft_study import Machines, read_study, run_study
    from peft_study.answers import summary_lines
    from peft_study.kinds import kind_of
    from peft_study.plan import with_root
    from peft_study.run import RESULTS
    from peft_study.summary import as_dict, summary

    study = with_root(read_study(chosen.study), chosen.data_root)
    if chosen.dry_run:
        _dry_run(study, chosen.json)
        return 0
    for package in (name for task in study.tasks for name in kind_of(task).packages(task)):
        # the last step of a cell would find out, after hours; to import it here would take seconds
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
    workers = chosen.workers if chosen.workers is not None else (0 if chosen.ray else 1)
    out = Path(chosen.out or f"runs/{study.study}").expanduser()
    files.append(out / RESULTS)
    rows = run_study(study, out, Machines(workers, chosen.threads, chosen.ray), chosen.retry_failed)
    results = summary(rows, study.reference_arm(), study.smallest_effect)
    described = as_dict(study, rows, results)
    _write(study, rows, described, out)
    if chosen.json:
        print(json.dumps({"folder": str(out), **described, "warnings": summary_lines(results)}, indent=2))
    else:
        _show(study, results, out)
    failed = sum(row.status == "failed" for row in rows)
    if failed:
        told = f"{failed} of {len(rows)} cells failed, {out / RESULTS} says why; --retry_failed runs them again"
        print(f"lrlora: {told}", file=sys.stderr)
    return 1 if failed else 0


def _write(study: Any, rows: list[Any], described: dict[str, Any], out: Path) -> None:
    """summary.json, and one file per final cell in the format of PEFT's method_comparison."""
    from peft_study.method_comparison import method_comparison_rows

    write_json(out / "summary.json", described)
    with new_folder(out / "method_comparison", overwrite=True) as folder:
        for row in method_comparison_rows(study, rows):
            name = row["run_info"]["experiment_name"].replace("/", "--")
            write_json(folder / f"{name}.json", row)


def _show(study: Any, results: list[Any], out: Path) -> None:
    from peft_study.answers import answers, summary_lines
    from peft_study.kinds import kind_of

    reference = study.reference_arm() or "nothing"
    for task in study.tasks:
        mine = [result for result in results if result.task == task.name]
        kind = kind_of(task)
        tuned = "one rate, not tuned" if len(study.learning_rates) == 1 else kind.tuned
        print_table(
            f"{task.name}: {mine[0].metric or 'no result'} {kind.measured}, mean [95 %]; {tuned}",
            ("arm", "s", "rate", "test", "n", f"minus {reference}", "p", "parameters", "time"),
            (_cells(result) for result in mine),
        )
        if any(result.capacity for result in mine):
            print_table(
                f"{task.name}: what the arms hold, mean [95 %]",
                ("arm", "bits", "bits a parameter", "exact recall", "nats a fact", f"x {reference}", "unrelated nats"),
                (_capacity_cells(result) for result in mine if result.capacity),
            )
    for question, answer in answers(results, reference):
        print(f"{question} {answer}")
    print_warnings(summary_lines(results))
    print(f"{out}: results.jsonl, study.json, summary.json, method_comparison/")


def _cells(result: Any) -> tuple[Any, ...]:
    test, difference = result.test, result.difference
    return (
        result.arm,
        "-" if result.scale is None else f"{result.scale.s:.4g}",
        "-" if result.learning_rate is None else f"{result.learning_rate:g}{' *' if result.at_the_edge else ''}",
        "-" if test is None else f"{test.mean:.4f}{_ends(test)}",
        "-" if test is None else test.n,
        "-" if difference is None else f"{difference.mean:+.4f}{_ends(difference)}",
        "-" if difference is None or difference.p_value is None else f"{difference.p_value:.3f}",
        "-" if result.trainable_parameters is None else f"{result.trainable_parameters:,}",
        "-" if result.wall_s is None else f"{result.wall_s:.1f} s",
    )


def _capacity_cells(result: Any) -> tuple[str, ...]:
    held = result.capacity
    before, after = held.unrelated_nats_before, held.unrelated_nats_after
    shown = [
        "-" if value is None else f"{value.mean:,.{digits}f}{_ends(value, digits)}"
        for value, digits in (
            (held.bits, 0), (held.bits_per_parameter, 3), (held.exact_recall, 3), (held.nats_per_fact, 3),
            (held.ratio, 2),
        )
    ]  # fmt: skip
    return (result.arm, *shown, "-" if before is None else f"{before.mean:.3f} to {after.mean:.3f}")


def _ends(interval: Any, digits: int = 3) -> str:
    return "" if interval.low is None else f" [{interval.low:,.{digits}f}, {interval.high:,.{digits}f}]"


def _dry_run(study: Any, as_json: bool) -> None:
    from peft_study.estimate import estimate_lines, estimates

    found = estimates(study)
    if as_json:
        print(json.dumps([dataclasses.asdict(each) for each in found], indent=2))
        print_warnings(estimate_lines(study, found))
        return
    for task in study.tasks:
        mine = [each for each in found if each.task == task.name]
        sizes = mine[0].sizes
        print_table(
            f"{task.name}: ESTIMATES, nothing was run; {sizes.told()}",
            ("arm", "s", "cells", "trainable", "fraction", "steps", "memory, GiB", "hours a cell", "hours", "x LoRA"),
            (each.shown() for each in mine),
        )
    print_warnings(estimate_lines(study, found))
