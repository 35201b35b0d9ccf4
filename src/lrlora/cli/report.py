"""`lrlora report`: one HTML page of runs, adapters and studies."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from lrlora.cli import verbs
from lrlora.cli.flags import parse, quiet_libraries
from lrlora.cli.show import print_warnings
from lrlora.errors import InputError


@dataclass
class ReportArguments:
    """Flags of `lrlora report`."""

    folders: list[str] = field(
        metadata={"help": "run folders or adapters of one experiment, a seed each; and folders of studies"}
    )
    out: Optional[str] = field(
        default=None, metadata={"help": "HTML file; report.html in the first folder if not given"}
    )
    model: Optional[str] = field(
        default=None, metadata={"help": "base model of adapters; what they and their runs name if left out"}
    )
    csv: Optional[str] = field(default=None, metadata={"help": "write the results of the studies to this CSV file too"})
    latex: Optional[str] = field(
        default=None, metadata={"help": "write the results of the studies to this LaTeX file too, as booktabs tables"}
    )
    figures: Optional[str] = field(
        default=None, metadata={"help": "draw the results of the studies into this folder too, as PNG and PDF"}
    )
    debug: bool = field(default=False, metadata={"help": "show a traceback on errors"})


def run(arguments: list[str]) -> None:
    """Write the page, and say where."""
    chosen = parse(ReportArguments, "report", arguments, "lrlora report runs/demo", positional="folders")
    quiet_libraries()
    from lrlora.report import page

    # with a study among the folders, the page is written by the study's package
    studies = [folder for folder in chosen.folders if verbs.is_of_study(folder)]
    writer = verbs.of_studies("page") if studies else page
    asked = [flag for flag in ("csv", "latex", "figures") if getattr(chosen, flag) is not None]
    if asked and not studies:
        raise InputError(
            f"--{asked[0]} is of studies, and no folder here has the results of one; `lrlora ranks --csv` writes the "
            "ranks of runs"
        )
    written = []
    if asked:
        written = verbs.of_studies("tables").write_tables(studies, chosen.csv, chosen.latex, chosen.figures)
    out = Path(chosen.out) if chosen.out else Path(chosen.folders[0]) / "report.html"
    print_warnings(writer.write_report(chosen.folders, out, chosen.model))
    print(out, *written, sep="\n")
