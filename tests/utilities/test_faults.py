"""Errors of the machine name their remedy."""

import numpy as np
import pytest
import torch

from utilities.faults import explained, explanation


def test_a_loading_process_that_the_system_ends():
    said = explanation(RuntimeError("DataLoader worker (pid 25669) is killed by signal: Killed. "))
    assert "is killed by signal: Killed." in said and "pid" not in said
    assert "--kernels" in said and "--resume" in said
    said = explanation(RuntimeError("DataLoader worker (pid(s) 3, 4) exited unexpectedly"))
    assert "exited unexpectedly" in said


def test_shared_memory_that_runs_out():
    error = RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your shared memory "
        "limit."
    )
    assert "--shm-size" in explanation(error)


def test_a_device_that_is_full():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
        torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2 GiB.\nmore"),
        RuntimeError("CUDA error: out of memory, Tried to allocate 2 GiB\nmore"),
        RuntimeError("cudaMalloc error out of memory [2] Tried to allocate 2 GiB\nmore"),
    ):
        said = explanation(error)
        assert "Tried to allocate 2 GiB" in said and "more" not in said and "\n" not in said
        for flag in ("--bs", "--image_size", "--precision bf16", "--evaluate_on_cpu", "--resume"):
            assert flag in said
    assert "GPU" in explanation(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))


def test_memory_that_runs_out():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)  # 4 PiB
    assert "--eval_memory" in explanation(caught.value)
    with pytest.raises(MemoryError) as full:
        np.empty(2**60, dtype=np.uint8)
    assert "--kernels" in explanation(full.value)


def test_other_errors_are_left_as_they_are():
    assert explanation(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_only_errors_of_the_machine_become_oserrors():
    with pytest.raises(OSError, match="--bs"), explained():
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="shapes"), explained():
        raise RuntimeError("shapes")
