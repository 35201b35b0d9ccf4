"""Figures of how much arms hold: bits, or exact recall, over the number of facts and over trained parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly import graph_objects

from lrlora.report.figures import GREY, plain
from peft_study.summary import ArmResult

LINES = ("#3f7fd0", "#d9782d", "#2a9d6f", "#b0549c", "#7d8a99", "#b59a1e", "#c0504d", "#4bacc6", "#6a51a3", "#8c6d46")
"""Told apart on white and on near-black; more arms than these differ in their dashes as well."""
_DASHES = ("solid", "dash", "dot")
MANY_ARMS = 8
"""From so many arms on, there is one more figure, with a line for each of them."""
_ALIKE = 1.03
"""Arms whose numbers of parameters differ by less than this factor are drawn above one another in a figure."""


def capacity_figures(results: Sequence[ArmResult]) -> list[tuple[str, Any]]:
    """Pairs of what a figure shows and the figure, for tasks of facts; none where no such task has a result.

    Tasks of one metric are drawn together: over the number of facts, where they differ in it. Another figure shows, for
    each arm, the value at the number of facts of which it held most, over trained parameters. With many arms a third
    one shows these values in order.
    """
    known = [result for result in results if result.capacity is not None and result.test is not None]
    made = []
    for metric in dict.fromkeys(result.metric for result in known):
        mine = [result for result in known if result.metric == metric]
        name = str(metric).replace("_", " ")
        if len({result.capacity.facts for result in mine if result.capacity}) > 1:
            made.append((f"{name} over the number of facts, arm by arm", _over_facts(mine, name)))
        best = [max((r for r in mine if r.arm == arm), key=_value) for arm in dict.fromkeys(r.arm for r in mine)]
        if len(best) > 1:
            words = f"{name} over trained parameters, of each arm at the number of facts of which it held most"
            made.append((words, _over_parameters(best, name)))
        if len(best) >= MANY_ARMS:
            words = f"{name} of every arm in order, with its trained parameters; the colours are numbers of parameters"
            made.append((words, _in_order(best, name)))
    return made


def _over_facts(results: Sequence[ArmResult], name: str) -> Any:
    figure = graph_objects.Figure()
    for number, arm in enumerate(dict.fromkeys(result.arm for result in results)):
        points = sorted((r for r in results if r.arm == arm), key=_facts)
        figure.add_scatter(
            x=[_facts(r) for r in points],
            y=[_value(r) for r in points],
            error_y=_reach(points),
            mode="lines+markers",
            name=plain(arm),
            line={"color": LINES[number % len(LINES)], "dash": _DASHES[number // len(LINES) % len(_DASHES)]},
            hovertemplate=f"{plain(arm)}: %{{y:.4g}}, %{{x:,.0f}} facts<extra></extra>",
        )
    figure.update_xaxes(type="log", title_text="facts", automargin=True)
    return _finished(figure, name, has_legend=True)


def _over_parameters(results: Sequence[ArmResult], name: str) -> Any:
    figure = graph_objects.Figure()
    figure.add_scatter(
        x=[r.trainable_parameters for r in results],
        y=[_value(r) for r in results],
        error_y=_reach(results),
        mode="markers+text",
        # of arms above one another the best is named, the others where the mouse points
        text=[plain(r.arm) if r is max(_alike(r, results), key=_value) else "" for r in results],
        textposition="top center",
        marker={"size": 10, "color": LINES[0]},
        customdata=[plain(r.arm) for r in results],
        hovertemplate="%{customdata}: %{y:.4g}, %{x:,.0f} parameters<extra></extra>",
    )
    figure.update_xaxes(type="log", title_text="trained parameters", automargin=True)
    return _finished(figure, name, has_legend=False)


def _in_order(results: Sequence[ArmResult], name: str) -> Any:
    ordered = sorted(results, key=_value)
    first = [max(_alike(r, ordered), key=_parameters) for r in ordered]
    sizes = sorted({_parameters(r) for r in first})
    figure = graph_objects.Figure()
    figure.add_scatter(
        x=[_value(r) for r in ordered],
        y=[f"{plain(r.arm)}, {_parameters(r):,}" for r in ordered],
        error_x=_reach(ordered),
        mode="markers",
        marker={"size": 9, "color": [LINES[sizes.index(_parameters(r)) % len(LINES)] for r in first]},
        hovertemplate="%{y}: %{x:.4g}<extra></extra>",
    )
    figure.update_xaxes(title_text=plain(name), automargin=True)
    figure.update_yaxes(automargin=True, dtick=1)
    figure.update_layout(height=80 + 19 * len(ordered), margin={"l": 10, "r": 30, "t": 30, "b": 10}, showlegend=False)
    return figure


def _alike(result: ArmResult, results: Sequence[ArmResult]) -> list[ArmResult]:
    """The arms with about as many parameters, itself among them."""
    mine = _parameters(result)
    return [r for r in results if max(mine, _parameters(r)) <= _ALIKE * min(mine, _parameters(r))]


def _parameters(result: ArmResult) -> int:
    return result.trainable_parameters or 0


def _facts(result: ArmResult) -> int:
    assert result.capacity is not None
    return result.capacity.facts


def _value(result: ArmResult) -> float:
    assert result.test is not None
    return result.test.mean


def _reach(results: Sequence[ArmResult]) -> dict[str, Any]:
    tests = [result.test for result in results if result.test is not None]
    return {
        "type": "data",
        "array": [0.0 if t.high is None else t.high - t.mean for t in tests],
        "arrayminus": [0.0 if t.low is None else t.mean - t.low for t in tests],
        "symmetric": False,
        "thickness": 1,
        "color": GREY,
    }


def _finished(figure: Any, name: str, has_legend: bool) -> Any:
    figure.update_yaxes(title_text=plain(name), automargin=True)
    figure.update_layout(
        height=380,
        margin={"l": 10, "r": 30, "t": 30, "b": 10},
        showlegend=has_legend,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
    )
    return figure
