"""What torch.compile makes of C++ on this machine can be loaded."""

import ctypes
import sys


def find_libstdcxx() -> None:
    """Put libstdc++ where every library finds it.

    Seen with GNU ld 2.40: for minutes to hours it leaves libstdc++ out of all that torch.compile links. That cannot be
    loaded, and a test of a compiled model fails.
    """
    if sys.platform == "linux":
        ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)
