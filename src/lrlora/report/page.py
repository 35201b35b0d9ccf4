"""One page of HTML that needs no network: the answers first, then what they rest on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lrlora
from lrlora.errors import InputError
from lrlora.files import check_file, new_file
from lrlora.report import figures, gates
from lrlora.report.curves import curves
from lrlora.report.findings import Findings, findings
from lrlora.report.predictions import MISTAKES, PAIRS, Predicted, predicted
from lrlora.saved.results import Run, read_run
from lrlora.statistics import Interval, PairedDifference

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Chart:
    """A figure with its words.

    Args:
        key: name within the page.
        label: what it shows, for whoever does not see it.
        figure: of plotly.
    """

    key: str
    label: str
    figure: Any


@dataclass(frozen=True)
class Section:
    """A part of the page that another package writes.

    Args:
        html: its text, escaped; `<div class="chart" data-figure="KEY">` shows the figure of that key.
        figures: of plotly, by key; a key must not be another section's.
    """

    html: str
    figures: dict[str, Any]


def write_report(
    folders: Sequence[str | Path], out: str | Path, model: str | None = None, sections: Sequence[Section] = ()
) -> list[str]:
    """Write the report of runs as one HTML file.

    Args:
        folders: run folders or adapters that differ by their seed.
        out: the HTML file.
        model: base model to measure adapters on; None means as `read_run`.
        sections: parts of the page behind the runs; with them, folders may be empty.

    Returns:
        Warnings: where a learned rank is none.

    Raises:
        InputError: a folder that is neither, runs that cannot be read together, an `out` that is read, or nothing to
            report.

    Example:
        write_report(["runs/seed0", "runs/seed1", "runs/seed2"], "report.html")
    """
    folders = [Path(folder).expanduser() for folder in folders]
    runs = [read_run(folder, model) for folder in folders]
    check_file(Path(out), [*folders, *(place for run in runs for place in run.sources(model))])
    if not runs and not sections:
        raise InputError("nothing to report: pass folders of `lrlora train`, adapters, or a study with results.jsonl")
    found = findings(runs) if runs else None
    with new_file(Path(out)) as begun:
        begun.write_text(page(runs, found, sections), encoding="utf-8")
    return found.warnings if found else []


def environment(*folders: Path) -> Any:
    """Where the templates of the page are, with its filters.

    Args:
        folders: further folders of templates, which can import `table.html` of this one.
    """
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader([TEMPLATES, *folders])
    made = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"interval": interval, "number": number, "difference": difference, "count": count}
    made.filters["upper_first"] = upper_first
    return made


def page(runs: Sequence[Run], found: Findings | None, sections: Sequence[Section]) -> str:
    """The text of the page."""
    from plotly.offline import get_plotlyjs

    charts = charts_of(runs, found) if found else {}
    shown = {key: chart.figure for key, chart in charts.items()}
    for section in sections:
        shown |= section.figures
    drawn = {key: json.loads(figure.to_json()) for key, figure in shown.items()}
    for figure in drawn.values():
        figure["layout"].pop("template", None)
    return (
        environment()
        .get_template("page.html")
        .render(
            runs=runs,
            found=found,
            sections=sections,
            charts=charts,
            figures=drawn,
            facts=facts(runs),
            predicted=[(each, _pictures(each)) for each in predicted(runs)],
            not_predicted=[run.folder.name for run in runs if run.predictions is None],
            most_mistakes=MISTAKES,
            most_pairs=PAIRS,
            style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
            script=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
            plotly=get_plotlyjs(),
            version=lrlora.__version__,
        )
    )


def _pictures(found: Predicted) -> dict[int, Any] | str:
    """Thumbnails of the mistakes that are shown, or why there are none."""
    # imported here: only runs on images need Pillow and what reads data
    from lrlora.report.thumbnails import thumbnails

    return thumbnails(found.runs[0], [each.place for each in found.mistakes[:MISTAKES]])


def charts_of(runs: Sequence[Run], found: Findings) -> dict[str, Chart]:
    """The figures of runs, by name; those without data are left out."""
    made = [
        Chart(
            "heatmap",
            "heatmap of the stable rank of every layer, next to its baselines (nulls)",
            figures.heatmap(found),
        ),
        Chart("pairs", "mean stable rank of attention and MLP, block by block", figures.pairs(found)),
        Chart("trajectories", "stable rank over the training steps", figures.trajectories(runs)),
        Chart("gates", "heatmap of the gate of every layer", gates.gate_heatmap(found)),
        Chart("gate_trajectories", "gates over the training steps", gates.gate_trajectories(runs)),
        Chart("curves", "the learned phi of every layer", curves(runs)),
        Chart("spectra", "singular values of every update", figures.spectra(runs[0])),
    ]
    return {chart.key: chart for chart in made if chart.figure is not None}


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What was trained, in pairs of a word and its value."""
    if not runs or not runs[0].settings:
        return [("adapters", ", ".join(run.folder.name for run in runs))] if runs else []
    settings, metrics = runs[0].settings, runs[0].metrics
    model = settings.get("model")
    return [
        ("model", str(model).rstrip("/").split("/")[-1] if model else "all-MiniLM-L6-v2, embedded"),
        ("task", str(metrics.get("task", settings.get("task") or settings.get("data")))),
        ("phi", f"{settings.get('phi')}, K = {settings.get('num_basis')}, tau {settings.get('tau')}"),
        ("carrier", _carrier(settings)),
        ("r", str(settings.get("r"))),
        ("shared by", str(settings.get("share"))),
        ("learning rate", f"{settings.get('learning_rate')}, of c {_c_rate(settings)}"),
        ("steps", str(metrics.get("steps", "-"))),
        ("seeds", ", ".join(str(run.settings.get("seed", "-")) for run in runs)),
    ]


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"  # noqa: RUF001 - a dash in a table


def interval(value: Interval | PairedDifference | None, digits: int = 2) -> str:
    """A mean with the ends of its interval, where it has one; of a difference with its sign."""
    if value is None:
        return number(None)
    if isinstance(value, PairedDifference):
        return value.signed(digits)
    ends = "" if value.low is None else f" [{number(value.low, digits)}, {number(value.high, digits)}]"
    return number(value.mean, digits) + ends


def difference(value: PairedDifference, digits: int = 2, is_short: bool = False) -> str:
    """A difference, its interval, its p-value, its size and, unless short, how it was tested, in words."""
    words = [value.signed(digits)]
    if value.effect_size is not None:
        words.append(f"effect size {value.effect_size:.2f}")
    if value.chance:
        words.append(value.chance)
    return ", ".join(words if is_short else [*words, f"n = {value.n}", value.test])


def upper_first(text: str) -> str:
    """The text with a large first letter; the others, of SR(BA) say, as they are."""
    return text[:1].upper() + text[1:]


def count(value: float | None, unit: float = 1, digits: int = 0) -> str:
    """A large number with separators, in units of `unit`."""
    return number(None) if value is None else f"{value / unit:,.{digits}f}"


def _carrier(settings: dict[str, Any]) -> str:
    if settings.get("carrier", "none") == "none":
        return "none"
    return f"{settings['carrier']}, from {settings.get('carrier_start')}, offset {settings.get('carrier_offset')}"


def _c_rate(settings: dict[str, Any]) -> str:
    rate = settings.get("c_learning_rate")
    return f"{rate if rate is not None else 10 * settings.get('learning_rate', float('nan')):g}"
