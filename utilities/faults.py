"""Turns out-of-memory, lost-worker and similar errors into messages with a remedy."""

import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, NoReturn

WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (?P<how>.*)", re.DOTALL)
IN_WORKER = re.compile(
    r"Caught \w+ in DataLoader worker process .*\n[\w.]+: (?P<why>.+)", re.DOTALL
)
OPEN_FILES = ("Too many open files", "received 0 items of ancdata")
SHARED_MEMORY = ("Bus error", "shared memory", "/torch_")
CPU_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory", "std::bad_alloc")
DEVICE_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "cudaMalloc")  # torch, cuBLAS, FAISS


class Remedies(NamedTuple):
    """Advice for full memory, the machine's and a GPU's, and for what was lost."""

    memory: str
    on_gpu: str
    then: str


OF_RUN = Remedies(
    "lower --forward_bs (images at a time, of the same batch), --kernels or --eval_memory",
    "train with a lower --forward_bs (images at a time, of the same batch), --bs or --image_size, "
    "with --grad_checkpointing or with --precision bf16; if evaluation filled it, resume with "
    "--evaluate_on_cpu or a lower --eval_memory",
    "finished epochs are kept: the same command with --resume continues after them",
)


@contextmanager
def explained(remedies: Remedies = OF_RUN) -> Iterator[None]:
    """Turn errors of the machine, such as full memory, into an OSError with a remedy."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        # The error of a lost process may be the context of another, such as torch.save's.
        both = (error,) if isinstance(error, OSError) else (error, error.__context__)
        text = next(filter(None, (explanation(one, remedies) for one in both if one)), None)
        if not text:
            raise
        # torch raises the loss of a loading process wherever the program is, and would raise it
        # again for the others while this one is reported.
        with suppress(ValueError):  # in a thread, where torch raises nothing
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise OSError(text) from error


@contextmanager
def reported(refuse: Callable[[str], NoReturn], memory: str = "free some of it") -> Iterator[None]:
    """End a command with one line where its flags, data or machine fail it.

    Args:
        refuse: prints a message and exits, as ``error`` of a parser.
        memory: advice for when the memory of the machine is full.
    """
    then = "repeat the command to continue"
    try:
        with explained(Remedies(memory, "lower --bs, or use --device cpu", then)):
            yield
    except (OSError, ValueError) as error:
        refuse(str(error))
    except KeyboardInterrupt:
        sys.exit(f"interrupted; {then}")


def explanation(error: BaseException, remedies: Remedies = OF_RUN) -> str | None:
    """Return an error of the machine as one line with its remedy; None for any other error."""
    text = str(error)
    first = next(iter(text.splitlines()), "")
    then = remedies.then
    if any(part in text for part in OPEN_FILES):
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return (
            f"more files are open than the limit of {most} allows ({first}): raise it (ulimit -n), "
            f"or use fewer processes (--kernels); {then}"
        )
    if isinstance(error, OSError):
        found = IN_WORKER.fullmatch(text.strip())
        return found["why"] if found else None
    if any(part in text for part in SHARED_MEMORY):
        return (
            f"the loading processes have no shared memory left ({first}): give the container more "
            f"(--shm-size of docker), or use fewer processes (--kernels); {then}"
        )
    if worker := WORKER.search(text):
        how = worker["how"].splitlines()[0].rstrip(". ")
        return (
            f"a loading process was lost: {how}. If the system ran out of memory, use fewer "
            f"processes (--kernels); {then}"
        )
    if isinstance(error, MemoryError) or any(part in text for part in CPU_MEMORY):
        return (
            f"the memory of this machine is full ({first or 'MemoryError'}): {remedies.memory}; "
            f"{then}"
        )
    if any(part in text for part in DEVICE_MEMORY):
        gpu = first.rstrip(". ")
        return f"the memory of the GPU is full ({gpu}): {remedies.on_gpu}; {then}"
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or else its type: for a sentence about it."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
