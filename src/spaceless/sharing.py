"""Several processes that compute on one GPU at the same time, by NVIDIA's Multi-Process Service.

Without it a GPU works for one process after the other, and the small maps of one network leave most of it idle.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PROGRAM = "nvidia-cuda-mps-control"
_PLACES = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
_PATIENCE = 20.0  # seconds for it to start or to end


@contextmanager
def shared_gpu() -> Iterator[bool]:
    """Let the processes that are started within this context share a GPU, and tell whether they do.

    A service that is there already is used, one that is started ends with the context. Where there is none, or it does
    not start, the processes take turns.
    """
    program = shutil.which(_PROGRAM)
    if program is None or any(name in os.environ for name in _PLACES):
        yield program is not None
        return
    with tempfile.TemporaryDirectory(prefix="spaceless-mps-", ignore_cleanup_errors=True) as folder:
        places = dict.fromkeys(_PLACES, folder)
        environment = os.environ | places
        try:
            subprocess.run(  # noqa: S603
                [program, "-d"], env=environment, capture_output=True, check=True, timeout=_PATIENCE)
        except (OSError, subprocess.SubprocessError) as error:
            warnings.warn(f"several processes on one GPU take turns, since {_PROGRAM} did not start: {error}",
                          stacklevel=3)
            yield False
            return
        os.environ.update(places)
        try:
            yield True
        finally:
            for name in _PLACES:
                del os.environ[name]
            with suppress(OSError, subprocess.SubprocessError):
                subprocess.run(  # noqa: S603
                    [program], env=environment, input=b"quit\n", capture_output=True, check=False, timeout=_PATIENCE)
