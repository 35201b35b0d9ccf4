"""How much memory a cell took beyond what the process held before it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Watch:
    """Starts to watch when it is made.

    On a GPU: torch's own count of the most bytes allocated. On a CPU under Linux: growth of the process's resident
    memory to its highest point; that is coarse, and memory that an earlier cell has freed but the process has kept
    hides some of it. Elsewhere: nothing.
    """

    def __init__(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            return
        _give_back()
        try:
            # 5: the kernel forgets the highest resident size so far
            _CLEAR.write_text("5")
            self._start = _kibibytes("VmRSS")
        except OSError:
            self._start = None

    def peak(self) -> dict[str, Any]:
        """`peak_bytes`, and in `peak_kind` what it is; None where it cannot be known."""
        if torch.cuda.is_available():
            return {"peak_bytes": torch.cuda.max_memory_allocated(), "peak_kind": "cuda_max_memory_allocated"}
        if self._start is None:
            return {"peak_bytes": None, "peak_kind": None}
        return {"peak_bytes": 1024 * max(0, _kibibytes("VmHWM") - self._start), "peak_kind": "rss_growth"}


def _give_back() -> None:
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library: it keeps what it keeps


def _kibibytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
