"""Memory that stays: large tensors live in the heap, and the heap does not shrink."""

import subprocess
import sys

import pytest

from dpa4sim.kernels import workspace


def test_room_ends_where_memory_does(monkeypatch):
    monkeypatch.setattr(workspace, "memory", lambda: 24 << 30)
    assert workspace.room(0) == 6 << 30
    assert workspace.room(1_000_000) == 6 << 30
    assert 0 < workspace.room(2_000_000) < 6 << 30
    assert workspace.room(100_000_000) == 0
    assert not workspace.is_large(160_000)
    assert workspace.is_large(170_000)


def test_the_machine_says_how_much_memory_it_has():
    assert 1 << 28 < workspace.memory() < 1 << 50


HEAP = """
import sys, torch
from pathlib import Path
from dpa4sim.kernels.workspace import keep_pages
if sys.argv[1] == "keep" and not keep_pages():
    sys.exit("no mallopt")
def heap():
    lines = Path("/proc/self/maps").read_text().splitlines()
    line = next(line for line in lines if "[heap]" in line)
    return [int(end, 16) for end in line.split()[0].split("-")]
tensor = torch.ones(40 << 18)  # 40 MiB, over every threshold of glibc
first, full = heap()
inside = first <= tensor.data_ptr() < full
del tensor
print(inside, heap()[1] == full)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator of glibc")
def test_large_tensors_stay_in_the_heap(monkeypatch):
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)

    def kept(word):
        command = [sys.executable, "-c", HEAP, word]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert kept("keep") == ["True", "True"]
    assert kept("usual")[0] == "False"
