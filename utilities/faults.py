"""Turns out-of-memory and lost-worker errors into messages with a remedy."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (?P<how>.*)", re.DOTALL)
SHARED_MEMORY = ("Bus error", "shared memory", "/torch_")
CPU_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory", "std::bad_alloc")
DEVICE_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "cudaMalloc")  # torch, cuBLAS, FAISS
RESUMES = "finished epochs are kept: the same command with --resume continues after them"


@contextmanager
def explained() -> Iterator[None]:
    """Turn out-of-memory and lost-worker errors into an OSError with a remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # The error of a lost process may be the context of another, such as torch.save's.
        text = explanation(error) or (error.__context__ and explanation(error.__context__))
        if not text:
            raise
        # torch raises the loss of a loading process wherever the program is, and would raise it
        # again for the others while this one is reported.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise OSError(text) from error


def explanation(error: BaseException) -> str | None:
    """Return an error of the machine as one line with its remedy; None for any other error."""
    text = str(error)
    first = next(iter(text.splitlines()), "")
    worker = WORKER.search(text)
    if any(part in text for part in SHARED_MEMORY):
        return (
            f"the loading processes have no shared memory left ({first}): give the container more "
            f"(--shm-size of docker), or use fewer processes (--kernels); {RESUMES}"
        )
    if worker:
        how = worker["how"].splitlines()[0].rstrip(". ")
        return (
            f"a loading process was lost: {how}. If the system ran out of memory, use fewer "
            f"processes (--kernels); {RESUMES}"
        )
    if isinstance(error, MemoryError) or any(part in text for part in CPU_MEMORY):
        return (
            f"the memory of this machine is full ({first or 'MemoryError'}): lower --bs, --kernels "
            f"or --eval_memory; {RESUMES}"
        )
    out_of_memory = isinstance(error, torch.OutOfMemoryError)
    if out_of_memory or any(part in text for part in DEVICE_MEMORY):
        return (
            f"the memory of the GPU is full ({first.rstrip('. ')}): train with a lower --bs or "
            "--image_size, or with --precision bf16; if evaluation filled it, resume with "
            f"--evaluate_on_cpu or a lower --eval_memory; {RESUMES}"
        )
    return None
