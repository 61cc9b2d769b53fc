"""Several processes that compute on one GPU at the same time, by NVIDIA's Multi-Process Service.

Without it a GPU works for one process after the other, and the small maps of one network leave most of it idle.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

_PROGRAM = "nvidia-cuda-mps-control"
_PLACES = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
_PATIENCE = 20.0  # seconds for it to start or to end


_PROBE = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
context = ctypes.c_void_p()
assert cuda.cuInit(0) == 0 and cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
"""  # a client of the service, in a process of its own


@contextmanager
def shared_gpu() -> Iterator[bool]:
    """Let the processes that are started within this context share a GPU, and tell whether they do.

    A service that is there already is used, one that is started ends with the context. Where there is none, or it does
    not serve, the processes take turns.
    """
    program = shutil.which(_PROGRAM)
    if program is None or any(name in os.environ for name in _PLACES):
        yield program is not None
        return
    with tempfile.TemporaryDirectory(prefix="spaceless-mps-", ignore_cleanup_errors=True) as folder:
        places = dict.fromkeys(_PLACES, folder)
        # It numbers the GPUs that it is shown anew; its clients would choose among the new numbers.
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | places
        if not _run([program, "-d"], environment) or not _run([sys.executable, "-c", _PROBE], os.environ | places):
            _run([program], environment, b"quit\n")
            warnings.warn(f"several processes on one GPU take turns, since {_PROGRAM} does not serve them",
                          stacklevel=3)
            yield False
            return
        os.environ.update(places)
        try:
            yield True
        finally:
            for name in _PLACES:
                del os.environ[name]
            _run([program], environment, b"quit\n")


def _run(command: Sequence[str], environment: Mapping[str, str], said: bytes = b"") -> bool:
    """Run a command silently and tell whether it went well; a service that stays would hold on to its output."""
    try:
        done = subprocess.run(  # noqa: S603
            command, env=environment, input=said, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
            timeout=_PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
