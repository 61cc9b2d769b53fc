"""Memory that is kept: asked for in a process of its own, because it cannot be taken back."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from spaceless.allocator import keep_memory
import numpy
kept = keep_memory() if sys.argv[1] == "keep" else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(12_000_000).sum()  # 96 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, sum(faults() for _ in range(5)))
"""


def run(word, **variables):
    command = [sys.executable, "-c", SCRIPT, word]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env={**ENVIRONMENT, **variables})
    kept, faults = found.stdout.split()
    return kept, int(faults)


ENVIRONMENT = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_block_above_32_mb_is_taken_again_without_touching_its_pages_anew():
    kept, without = run("keep")
    if kept == "False":
        pytest.skip("this C library is not glibc")
    _, with_faults = run("leave")
    assert without * 20 < with_faults


def test_a_setting_of_the_users_own_is_respected():
    assert run("keep", MALLOC_TOP_PAD_="0")[0] == "False"
