"""Describes the machine that a benchmark runs on."""

import platform
from pathlib import Path


def processor() -> str:
    """Return the model name of the processor that Linux knows, else the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
