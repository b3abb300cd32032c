"""What the machine did to a run, said so that one knows what to do about it."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (?P<how>.*)", re.DOTALL)
SHARED_MEMORY = ("Bus error", "shared memory", "/torch_")
CPU_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory", "std::bad_alloc")
GOES_ON = "finished epochs are kept, the same command with --resume goes on"


@contextmanager
def explained() -> Iterator[None]:
    """What the machine fails to give becomes an OSError with its remedy.

    Raises:
        OSError: no memory, no device memory, no shared memory, or a loading process that was ended.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = explanation(error)
        if said is None:
            raise
        # torch raises the loss of a loading process wherever the program stands, and would raise
        # it again for the others while this one is written down.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise OSError(said) from error


def explanation(error: BaseException) -> str | None:
    """An error of the machine in a sentence with its remedy; None for one of another kind.

    Args:
        error: as torch raises it: a RuntimeError or a MemoryError.
    """
    text = str(error)
    first = next(iter(text.splitlines()), "")
    worker = WORKER.search(text)
    if any(part in text for part in SHARED_MEMORY):
        return (
            f"the loading processes have no shared memory left ({first}): give the container more "
            f"(--shm-size of docker), or load in fewer with --kernels; {GOES_ON}"
        )
    if worker:
        how = worker["how"].splitlines()[0].rstrip(". ")
        return (
            f"a loading process was lost: {how}. Where the system ran out of memory, load in fewer "
            f"processes (--kernels); {GOES_ON}"
        )
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"{first} Lower --bs or --image_size, or compute with --precision bf16; where another "
            f"program fills the device, {GOES_ON} once it has ended"
        )
    if isinstance(error, MemoryError) or any(part in text for part in CPU_MEMORY):
        return (
            f"the memory of this machine is used up ({first or 'MemoryError'}): lower --bs, "
            f"--kernels or --eval_memory; {GOES_ON}"
        )
    return None
