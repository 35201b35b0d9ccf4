"""The search over sizes: bisection on a curve that need not be monotone, and a look at what is next to its result."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

RESOLUTION = 0.02
"""The result is at most so much larger than the largest size that failed, unless no size is in between."""
AROUND = (0.8, 0.9, 1.1, 1.25)
"""The neighbours that are measured as well, as multiples of the result."""


def smallest_passing(
    passes: Callable[[int], bool], sizes: Sequence[int], known: Sequence[int] = (), resolution: float = RESOLUTION
) -> int | None:
    """The position of the smallest size from which on every size that was measured passes.

    A metric is not monotone in the size. So what is found is no minimum: a smaller size may pass below one that fails.
    First the ends are measured, then the geometric middle between the largest size that failed and the smallest above
    it that passed, then the sizes next to the result (`AROUND`). A neighbour above the result that fails starts the
    bisection again above it.

    Args:
        passes: measures the size at a position; asked once for each.
        sizes: rising.
        known: positions that `passes` answers without work, such as those of an earlier search.
        resolution: see `RESOLUTION`.

    Returns:
        The position; None where the largest size fails.

    Example:
        >>> smallest_passing(lambda position: position >= 70, range(1, 101))
        70
    """
    last = len(sizes) - 1
    found = {last: passes(last)}
    if not found[last]:
        return None
    for position in {0, *known} - {last}:
        found[position] = passes(position)
    while True:
        failed = max((position for position, is_enough in found.items() if not is_enough), default=-1)
        best = min(position for position in found if position > failed)
        if failed >= 0 and best - failed > 1 and sizes[best] > (1 + resolution) * sizes[failed]:
            middle = bisect.bisect_left(sizes, math.sqrt(sizes[failed] * sizes[best]))
            asked = min(max(middle, failed + 1), best - 1)
        else:
            around = (min(bisect.bisect_left(sizes, factor * sizes[best]), last) for factor in AROUND)
            asked = next((position for position in around if position not in found), None)
            if asked is None:
                return best
        found[asked] = passes(asked)
