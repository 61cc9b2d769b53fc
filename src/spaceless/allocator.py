"""The C library's memory: what large tensors free is kept for the next step, and lies on large pages."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

# glibc gives every block above 32 MB back to the system, and the next step pays for each of its pages again.
_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)
_SETTINGS = ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 1 << 28))  # -1: nothing is given back
_HUGE_PAGE, _MADV_HUGEPAGE = 1 << 21, 14  # madvise(2)
_BLOCK, _BLOCKS = 1 << 29, 16  # below the first threshold, so that they lie one behind the other


def keep_memory() -> bool:
    """Have this process keep freed memory, on large pages where it may; return whether its C library keeps it.

    Only glibc is asked, and not where the environment has a setting of its own (mallopt(3) names the variables).
    """
    if sys.platform != "linux" or any(name in os.environ for name in _VARIABLES):
        return False
    return _kept()


@cache  # settings of the process: once is enough
def _kept() -> bool:
    libc = ctypes.CDLL(None)
    try:
        kept = all(bool(libc.mallopt(parameter, value)) for parameter, value in _SETTINGS)
    except (OSError, AttributeError):  # another C library
        return False
    if kept:
        _ask_for_huge_pages(libc)
    return kept


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Have the next memory lie on pages of 2 MB, if the system grants them on request, as it usually does.

    With pages of 4 kB a training step of VGG-16 spends 5 to 10 % of its time on finding them. The address space is
    taken and freed again, untouched: no memory is in use for it. Where address space is counted, it is left alone.
    """
    if _address_space_counts():
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.free.restype, libc.free.argtypes = None, (ctypes.c_void_p,)
    taken = [block for _ in range(_BLOCKS) if (block := libc.malloc(_BLOCK))]
    if taken:
        start = -(-min(taken) // _HUGE_PAGE) * _HUGE_PAGE
        libc.madvise(start, max(taken) + _BLOCK - start, _MADV_HUGEPAGE)  # refused: they stay small, nothing else
    for block in reversed(taken):
        libc.free(block)


def _address_space_counts() -> bool:
    import resource  # not on every system

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return True
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return False
