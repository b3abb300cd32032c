"""Errors of the machine name their remedy."""

import numpy as np
import pytest
import torch

from utilities.faults import explained, explanation


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "DataLoader worker (pid 25669) is killed by signal: Killed. ",
            ("is killed by signal: Killed.", "--kernels", "--resume"),
        ),
        ("DataLoader worker (pid(s) 3, 4) exited unexpectedly", ("exited unexpectedly",)),
        ("received 0 items of ancdata", ("ulimit -n", "--kernels", "--resume")),
        (
            "unable to open shared memory object </torch_7_8> in read-write mode: Too many open "
            "files (24)",
            ("ulimit -n", "--kernels"),
        ),
        (
            "unable to write to file </torch_7_8>: No space left on device (28)",
            ("--shm-size",),
        ),
        (
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory. Please try to raise your shared memory "
            "limit.",
            ("--shm-size",),
        ),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", ("GPU",)),
    ],
)
def test_lost_workers_and_full_memory_are_explained(error, told):
    text = explanation(RuntimeError(error))
    assert all(part in text for part in told)
    assert "pid" not in text or "--shm-size" in text


def test_an_error_in_a_loading_process_is_one_line():
    text = (
        "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "worker.py", line 375, in _worker_loop\n    data = fetch(index)\n'
        "OSError: none of the images can be read\n"
    )
    with pytest.raises(OSError) as caught, explained():
        raise OSError(text)
    assert str(caught.value) == "none of the images can be read"
    with pytest.raises(OSError, match=r"^Caught by hand$"), explained():
        raise OSError("Caught by hand")


def test_a_device_that_is_full():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
        torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2 GiB.\nmore"),
        RuntimeError("CUDA error: out of memory, Tried to allocate 2 GiB\nmore"),
        RuntimeError("cudaMalloc error out of memory [2] Tried to allocate 2 GiB\nmore"),
    ):
        text = explanation(error)
        assert "Tried to allocate 2 GiB" in text and "more" not in text and "\n" not in text
        for flag in ("--bs", "--image_size", "--precision bf16", "--evaluate_on_cpu", "--resume"):
            assert flag in text


def test_memory_that_runs_out():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)  # 4 PiB
    assert "--eval_memory" in explanation(caught.value)
    with pytest.raises(MemoryError) as full:
        np.empty(2**60, dtype=np.uint8)
    assert "--kernels" in explanation(full.value)


def test_only_errors_of_the_machine_become_oserrors():
    with pytest.raises(OSError, match="--bs"), explained():
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="shapes"), explained():
        raise RuntimeError("shapes")


def test_a_lost_process_is_found_behind_the_error_that_it_caused():
    with pytest.raises(OSError, match="--kernels"), explained():
        try:
            raise RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed.")
        except RuntimeError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 - as a with block does
