"""Memory that is kept: asked for in a process of its own, because it cannot be taken back."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import re, resource, sys
from spaceless.allocator import keep_memory
import numpy
kept = keep_memory() if sys.argv[1] == "keep" else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(12_000_000).sum()  # 96 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
found = [kept, sum(faults() for _ in range(5))]
mine = numpy.ones(12_000_000)
heap = [part for part in re.split(r"\\n(?=[0-9a-f]+-)", open("/proc/self/smaps").read()) if "[heap]" in part]
found.append(sum(int(re.search(r"AnonHugePages: +(\\d+)", part)[1]) for part in heap))
status = open("/proc/self/status").read()
print(*found, *(int(re.search(rf"{name}:\\s+(\\d+)", status)[1]) for name in ("VmRSS", "VmSize")))
"""


def run(word, limit=None, **variables):
    """Whether memory is kept, page faults of using it again, kB of the heap on large pages, kB in use, kB reserved."""
    command = [sys.executable, "-c", SCRIPT, word]
    if limit:
        command = ["/bin/sh", "-c", f'ulimit -v {limit} && exec "$@"', "sh", *command]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env={**ENVIRONMENT, **variables})
    kept, *numbers = found.stdout.split()
    return kept, *map(int, numbers)


ENVIRONMENT = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_block_above_32_mb_is_taken_again_without_touching_its_pages_anew():
    kept, without, *_ = run("keep")
    if kept == "False":
        pytest.skip("this C library is not glibc")
    _, with_faults, *_ = run("leave")
    assert without * 20 < with_faults


def granted():
    try:
        return "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not granted(), reason="this system has no large pages to give")
def test_what_is_kept_lies_on_large_pages_and_reserving_them_uses_no_memory():
    kept, _, large, used, reserved = run("keep")
    if kept == "False":
        pytest.skip("this C library is not glibc")
    assert large > 90_000  # of 94 MB that the script holds
    assert used < 400_000 < 8_000_000 < reserved


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_where_address_space_is_limited_none_is_reserved():
    *_, reserved = run("keep", limit=3_000_000)  # 3 GB; it would be 8
    assert reserved < 2_000_000


def test_a_setting_of_the_users_own_is_respected():
    assert run("keep", MALLOC_TOP_PAD_="0")[0] == "False"
