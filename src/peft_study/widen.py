"""Rates beyond the edge of a grid: what a search tries next while its best rate is the lowest or the highest."""

from __future__ import annotations

from collections.abc import Collection


def rate_beyond(rates: Collection[float], best: float) -> float | None:
    """The rate one factor of the grid beyond the edge at which the best one is; None where it is inside.

    The factor is that between the best rate and its neighbour: a grid goes on as it was made. Six digits are kept,
    since a rate is part of the fingerprint of a cell and must not depend on how a quotient was rounded.

    Args:
        rates: all that were tried, at least two, above 0.
        best: one of them.

    Example:
        >>> rate_beyond([1e-3, 2e-3, 4e-3], 4e-3), rate_beyond([1e-3, 3e-3], 1e-3), rate_beyond([1, 2, 3], 2)
        (0.008, 0.000333333, None)
    """
    ordered = sorted(rates)
    if best == ordered[-1]:
        return _rounded(best * best / ordered[-2])
    return _rounded(best * best / ordered[1]) if best == ordered[0] else None


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")
