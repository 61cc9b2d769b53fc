"""The C library's memory: what large tensors free is kept for the next step instead of being given back."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc gives every block above 32 MB back to the system, and the next step pays for each of its pages again.
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)
_SETTINGS = ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 28))


def keep_memory() -> bool:
    """Have this process keep freed memory; return whether its C library does.

    Only glibc is asked, and not where the environment has a setting of its own (mallopt(3) names the variables).
    """
    if sys.platform != "linux" or any(name in os.environ for name in _VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(bool(mallopt(parameter, value)) for parameter, value in _SETTINGS)
