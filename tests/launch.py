"""Starts a test file as a program of several processes, and joins them over gloo."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]


def run(file: str, *words: str, timeout: float) -> None:
    """Run a program to its end; its processes go with it. Its errors fail the test."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, file, *words]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, start_new_session=True) as made:
        try:
            _, errors = made.communicate(timeout=timeout)
        finally:
            if made.poll() is None:
                os.killpg(made.pid, signal.SIGKILL)  # with its ranks
    assert made.returncode == 0, errors.decode()


def join(rank: int, world_size: int, meeting: Path) -> None:
    """Make this process one of ``world_size`` that meet in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
