"""Results as tables in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from lrlora.ranks.measure import LayerRank
from lrlora.saved.sums import said_of_sums
from lrlora.training import processes


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]], words: int = 1) -> None:
    """Print a table on stdout; the first `words` columns are text, the others numbers."""
    # imported here: --help needs no extra
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < words else "right")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    # a pipe has no width: rich would cut the names of the layers at 80 columns
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def tell_of_changes(folders: Sequence[str]) -> None:
    """Warn of files in run, adapter and model folders that are not those that were written.

    Called once they could be read: an error about a file that was cut short needs no second line.
    """
    for folder in folders:
        if line := said_of_sums(folder):
            processes.tell(f"warning: {folder} has {line}; restore it, unless you have changed it yourself")


def print_ranks(rows: list[LayerRank]) -> None:
    """The learned rank of every layer, with its baseline (null)."""
    has_gates = any(row.gate is not None for row in rows)
    headings = ["layer", "kind", "SR(dW)", "SR(BA)", "effective", "numerical", "constant", "RMS/tau", "|dW|/|W0|"]
    headings += ["gate"] * has_gates
    cells = (
        (
            row.layer,
            row.kind,
            f"{row.stable_rank:.2f}",
            f"{row.stable_rank_ba:.2f}",
            _number(row.effective_rank, ".1f"),
            _number(row.numerical_rank, "d"),
            f"{row.constant_share:.1%}",
            f"{row.rms_over_tau:.2f}",
            _number(row.relative_norm, ".3f"),
            *([_number(row.gate, ".3f")] if has_gates else ()),
        )
        for row in rows
    )
    print_table("learned rank of every layer; SR(BA) is the null, what LoRA would have", headings, cells, words=2)


def print_mean_ranks(table: list[dict[str, Any]], seeds: int) -> None:
    """The mean over seeds of the learned rank of every layer, with its interval from three seeds on."""
    means = [*_MEANS, *([("gate", ".3f")] if any(line["gate"] is not None for line in table) else ())]
    headings = ["layer", "kind", "SR(dW)", "95 %", "SR(BA)", "effective", "RMS/tau", "|dW|/|W0|", "gate"]
    headings = headings[: 5 + len(means)]
    cells = (
        (
            line["layer"],
            line["kind"],
            f"{line['stable_rank'].mean:.2f}",
            "-" if line["stable_rank"].low is None else f"{line['stable_rank'].low:.2f} {line['stable_rank'].high:.2f}",
            f"{line['stable_rank_ba'].mean:.2f}",
            *(_number(None if line[n] is None else line[n].mean, form) for n, form in means),
        )
        for line in table
    )
    print_table(f"learned rank of every layer, mean of {seeds} seeds; SR(BA) is the null", headings, cells, words=2)


_MEANS = (("effective_rank", ".1f"), ("rms_over_tau", ".2f"), ("relative_norm", ".3f"))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def print_warnings(messages: Iterable[str]) -> None:
    """One line each, on stderr."""
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)
