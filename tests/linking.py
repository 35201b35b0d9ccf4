"""What torch.compile makes of C++ on this machine can be loaded."""

import ctypes
import os
import sys


def find_libstdcxx() -> None:
    """Put libstdc++ where every library finds it.

    Seen with GNU ld 2.40: for minutes to hours it leaves libstdc++ out of all that torch.compile links. That cannot be
    loaded, and a layer runs its plain passes instead of the compiled ones that a test is about.
    """
    if sys.platform == "linux":
        ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)


def environment() -> dict[str, str]:
    """This process's environment, for one that runs no code of ours before what it compiles is loaded."""
    return {**os.environ, "LD_PRELOAD": "libstdc++.so.6"} if sys.platform == "linux" else dict(os.environ)
