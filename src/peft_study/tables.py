"""The results of studies for a paper: a table as CSV and as LaTeX, and figures as PNG and PDF."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrlora.errors import InputError
from lrlora.files import check_file, new_file, new_folder
from lrlora.statistics import Interval, PairedDifference
from peft_study.capacity_figures import LINES
from peft_study.page import StudySection, study_section
from peft_study.summary import ArmResult

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip
_MARKERS = ("o", "s", "^", "D")
_CAPACITY = ("bits", "bits_per_parameter", "exact_recall", "nats_per_fact", "ratio")


def write_tables(
    folders: Sequence[str | Path], csv_file: str | None, latex_file: str | None, figures: str | None
) -> list[Path]:
    """Write the results of studies as files for a paper.

    Args:
        folders: folders of studies; those without results are left out.
        csv_file: its file; None: not written.
        latex_file: likewise.
        figures: folder of PNG and PDF files, two figures per task; None: not written.

    Returns:
        What was written.

    Raises:
        InputError: no folder holds a study with a result, or a file that is read would be written over.
    """
    places = [Path(folder).expanduser() for folder in folders]
    studies = [section for section in map(study_section, places) if section is not None]
    if not studies:
        raise InputError("no result of a study in these folders; --csv, --latex and --figures are of studies")
    written = []
    for name, text_of in ((csv_file, None), (latex_file, latex)):
        if name is None:
            continue
        check_file(Path(name), places)
        with new_file(Path(name)) as file, file.open("w", encoding="utf-8", newline="") as out:
            if text_of is None:
                lines = csv_rows(studies)
                writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)
            else:
                out.write(text_of(studies))
        written.append(Path(name))
    if figures is not None:
        with new_folder(Path(figures), overwrite=True, written=("*.png", "*.pdf"), read=places) as folder:
            _draw(studies, folder)
        written.append(Path(figures))
    return written


def csv_rows(studies: Sequence[StudySection]) -> list[dict[str, Any]]:
    """A row per study, task and arm; what was not measured is empty, numbers are in full."""
    return [
        {
            "study": study.name,
            "task": r.task,
            "arm": r.arm,
            "method": r.method,
            "s": r.scale and r.scale.s,
            "metric": r.metric,
            "learning_rate": r.learning_rate,
            "at_the_edge": r.at_the_edge,
            **_ends("value", r.test),
            "seeds": r.test.n if r.test else 0,
            "reference": study.reference,
            **_ends("difference", r.difference),
            "p_value": r.difference and r.difference.p_value,
            "verdict": r.difference and r.difference.verdict,
            **_ends("loss", r.loss),
            "trainable_parameters": r.trainable_parameters,
            "wall_s": r.wall_s,
            "peak_bytes": r.peak_bytes,
            "file_bytes": r.file_bytes,
            "failed": r.failed,
            **_ends("stable_rank", r.ranks and r.ranks.stable_rank),
            **_ends("stable_rank_ba", r.ranks and r.ranks.stable_rank_ba),
            "facts": r.capacity and r.capacity.facts,
            **{key: value for n in _CAPACITY for key, value in _ends(n, r.capacity and getattr(r.capacity, n)).items()},
        }
        for study in studies
        for r in study.results
    ]


def _ends(name: str, value: Interval | PairedDifference | None) -> dict[str, float | None]:
    found = (value.mean, value.low, value.high) if value else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def latex(studies: Sequence[StudySection]) -> str:
    """A table per study; it needs `\\usepackage{booktabs}`."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(map(_latex_table, studies))


def _latex_table(study: StudySection) -> str:
    name, reference = escaped(study.name), escaped(study.reference)
    lines = []
    for number, r in enumerate(study.results):
        is_next_task = number and r.task != study.results[number - 1].task
        cells = (
            escaped(r.task), escaped(r.arm), escaped(r.metric or "--"), plus_minus(r.test),
            str(r.test.n if r.test else 0), plus_minus(r.difference),
            "--" if not r.difference or r.difference.p_value is None else f"{r.difference.p_value:.3f}",
            "--" if r.trainable_parameters is None else f"{r.trainable_parameters:,}".replace(",", r"\,"),
        )  # fmt: skip
        lines.append(("\\midrule\n" if is_next_task else "") + " & ".join(cells) + r" \\")
    head = ("task", "arm", "metric", "value", "seeds", f"$-$ {reference}", "$p$", "parameters")
    caption = f"Study {name}: means over seeds with 95\\,\\% intervals, differences to {reference} paired by seed."
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", r"\begin{tabular}{lllrrrrr}", r"\toprule",
        " & ".join(head) + r" \\", r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def plus_minus(value: Interval | PairedDifference | None) -> str:
    """A mean with its interval: as one half-width, or as both where it is not symmetric."""
    if value is None:
        return "--"
    sign = "+" if isinstance(value, PairedDifference) else ""
    mean = f"{value.mean:{sign}.4f}"
    if value.low is None or value.high is None:
        return f"${mean}$"
    above, below = value.high - value.mean, value.mean - value.low
    if f"{above:.4f}" == f"{below:.4f}":
        return rf"${mean} \pm {above:.4f}$"
    return f"${mean}^{{+{above:.4f}}}_{{-{below:.4f}}}$"


def escaped(text: str) -> str:
    """A text as LaTeX shows it."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _draw(studies: Sequence[StudySection], folder: Path) -> None:
    for number, study in enumerate(studies):
        for task in dict.fromkeys(r.task for r in study.results):
            known = [r for r in study.results if r.task == task and r.test]
            if known:
                # two studies can have one name
                stem = f"{study.name}-{task}" if len(studies) == 1 else f"{number}-{study.name}-{task}"
                _arms(known, folder / f"{stem}-arms")
                _parameters([r for r in known if r.trainable_parameters], folder / f"{stem}-parameters")


def _arms(results: Sequence[ArmResult], path: Path) -> None:
    """Mean and interval of every arm, the first on top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.2 + 0.3 * len(results)), layout="constrained")
    axis = figure.subplots()
    places = range(len(results))
    axis.errorbar([_mean(r) for r in results], places, xerr=_reach(results), fmt="o", capsize=3, color="#3f7fd0")
    axis.set_yticks(places, [_plain(r.arm) for r in results])
    axis.invert_yaxis()
    axis.set_xlabel(_plain(f"{results[0].task}: {results[0].metric}"))
    _save(figure, path)


def _parameters(results: Sequence[ArmResult], path: Path) -> None:
    """Mean and interval over trained parameters, on a logarithmic scale where they differ tenfold."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    if not results:
        return
    figure = Figure(figsize=(7, max(4, 0.5 + 0.2 * len(results))), layout="constrained")
    axis = figure.subplots()
    numbers = [r.trainable_parameters or 0 for r in results]
    # arms of one size are above one another: a legend tells them apart, where names would cover each other
    for place, r in enumerate(results):
        colour, marker = LINES[place % len(LINES)], _MARKERS[place // len(LINES) % len(_MARKERS)]
        axis.errorbar(
            [numbers[place]], [_mean(r)], yerr=_reach([r]), fmt=marker, capsize=3, color=colour, label=_plain(r.arm)
        )
    figure.legend(loc="outside right upper", fontsize=8)
    if max(numbers) >= 10 * min(numbers):
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    else:
        axis.xaxis.set_major_locator(ticker.MaxNLocator(4))
        axis.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axis.set_xlabel("trained parameters")
    axis.set_ylabel(_plain(f"{results[0].task}: {results[0].metric}"))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    for kind in ("png", "pdf"):
        figure.savefig(f"{path}.{kind}", dpi=200)


def _mean(result: ArmResult) -> float:
    assert result.test is not None
    return result.test.mean


def _reach(results: Sequence[ArmResult]) -> list[list[float]]:
    tests = [r.test for r in results if r.test]
    return [
        [0.0 if t.low is None else t.mean - t.low for t in tests],
        [0.0 if t.high is None else t.high - t.mean for t in tests],
    ]


def _plain(text: str) -> str:
    # matplotlib sets what is between two of them as mathematics
    return text.replace("$", r"\$")
