"""Several processes that start at once: copies of this one, which has PyTorch loaded."""

from collections.abc import Callable

import torch
from torch import multiprocessing


def several(function: Callable[..., None], count: int, *words: object) -> None:
    """Call `function` with its rank, `count` and `words` in so many processes; an error in one of them is raised here.

    They are forked, but where a GPU may be in use, whose state no copy can have.
    """
    kind = "spawn" if torch.cuda.is_available() else "fork"
    multiprocessing.start_processes(function, (count, *words), nprocs=count, start_method=kind)
