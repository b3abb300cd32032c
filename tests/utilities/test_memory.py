"""Freed memory stays with the process under glibc, and the peak is the kernel's."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from utilities import memory

STATUS = Path("/proc/self/status")
FAULTS = """
import resource, sys
from utilities.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for batch in range(21):
    if batch == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (batch // 30 + (60 << 20))  # more than glibc would ever keep of its own accord
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_blocks_are_not_faulted_in_again():
    def faults(mode):
        root = Path(memory.__file__).parents[1]
        command = [sys.executable, "-c", FAULTS, mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
        return int(done.stdout)

    assert faults("kept") < faults("given back") / 4


@pytest.mark.parametrize(
    ("system", "libc"), [("darwin", ("", "")), ("win32", ("", "")), ("linux", ("musl", "1.2"))]
)
def test_elsewhere_nothing_is_done(monkeypatch, system, libc):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    monkeypatch.setattr(memory.ctypes, "CDLL", None)  # calling it would raise
    assert memory.keep_freed_memory() is False


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux shows the peak in a second place")
def test_peak_memory_is_the_kernels_own_high_water_mark():
    mark = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    assert memory.peak_memory_mb() == pytest.approx(int(mark.split()[1]) / 1024, rel=0.02)
