"""Without a GPU the kernels for one run in Triton's interpreter; it is asked for before Triton is imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
