"""Chooses the device that computes, and copies to and from it.

All through ``torch.accelerator``, so that CUDA and the pretend device of the tests take the same
path; so do Apple's MPS and Intel's XPU, untested.
"""

import logging
import os
import platform
import re
import shutil
import subprocess
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

LOG = logging.getLogger(__name__)

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(name: str = "auto", gpu: int = 0) -> torch.device:
    """Return an available device, and make it the current one of this process.

    Args:
        name: ``auto`` (the accelerator, else the CPU), or any device of torch, such as ``cuda:1``.
        gpu: index of the GPU, unless the name has one. Each process of torchrun takes its own.
    """
    own = os.environ.get("LOCAL_RANK") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        if found is None and gpu:
            raise ValueError(f"--gpu {gpu}: {_no_gpu()}; leave --gpu out to use the CPU")
        wanted = CPU if found is None else found
    else:
        try:
            wanted = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"--device must be auto or a device of torch; got {name}") from error
    if wanted.type == "cpu":
        return CPU
    if found is None or wanted.type != found.type:
        usable = "cpu" if found is None else f"cpu or {found.type}"
        raise ValueError(f"--device {name}: {_no_gpu(wanted.type)}; use {usable}")
    count = torch.accelerator.device_count()
    if own is not None:
        index = int(own)
        source = f"torchrun started {index + 1} or more processes here"
    elif wanted.index is not None:
        index, source = wanted.index, f"--device {name}"
    else:
        index, source = gpu, f"--gpu {gpu}"
    if index >= count:
        raise ValueError(f"{source}: this machine has {count} of type {found.type}, from 0 on")
    torch.accelerator.set_device_index(index)
    return torch.device(wanted.type, index)


def set_up(
    device: str, gpu: int = 0, *, deterministic: bool = False, compile: bool = False
) -> torch.device:
    """Choose the device of a run, and check that what the run needs works on it.

    Args:
        device, gpu: as of ``choose``.
        deterministic: fail on operations that vary between runs.
        compile: torch.compile will be used.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    chosen = choose(device, gpu)
    if chosen.type == "cpu" and device == "auto" and (idle := idle_driver()):
        LOG.warning("%s; computing on the CPU", idle)
    if compile:
        _check_compiler(chosen)
    return chosen


def at_most_the_cores(kernels: int) -> int:
    """Return the number of loading processes of ``--kernels``."""
    cores = os.cpu_count() or 1
    if kernels > cores:
        LOG.info("--kernels %d: loading with %d processes, one per core", kernels, cores)
    return min(kernels, cores)


def _check_compiler(device: torch.device) -> None:
    """Raise ValueError if torch.compile does not work here; it needs a compiler of C++."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # of torch, of Triton or of the compiler
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"--compile does not work on this machine ({reason:.200}); install a C++ compiler, "
            "such as g++, or drop --compile"
        ) from error


def idle_driver() -> str | None:
    """Return a line about an NVIDIA driver that torch cannot use; None without such a problem."""
    if torch.accelerator.is_available() or shutil.which("nvidia-smi") is None:
        return None
    try:
        report = subprocess.run(
            ["nvidia-smi"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]+)", report.stdout)
    driver = f"an NVIDIA driver for CUDA {version[1]}" if version else "an NVIDIA driver"
    build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a CPU build"
    return (
        f"{driver} answers, but torch {torch.__version__} {build} and sees no GPU: run "
        "bash requirements.sh again to install a build that fits, or use --device cpu"
    )


def _no_gpu(kind: str = "GPU") -> str:
    return idle_driver() or f"torch {torch.__version__} sees no {kind} on this machine"


def precision(name: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16; "half" is fp16, and bf16 on a CPU, which has no fast fp16."""
    if name == "half":
        return "bf16" if device.type == "cpu" else "fp16"
    return name


def autocast(device: torch.device, name: str) -> AbstractContextManager[None]:
    """Return a context that computes in a ``precision`` where that is safe.

    Weights stay float32. Micikevicius et al., Mixed Precision Training, ICLR 2018.
    """
    dtype = DTYPES[precision(name, device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to ``device`` from pinned memory; the host does not wait."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class PendingCopy:
    """Copies of tensors on their way to the CPU; the host waits only in ``wait``."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = tuple(tensor.detach().to("cpu", non_blocking=True) for tensor in tensors)
        devices = {tensor.device for tensor in tensors} - {CPU}
        self._events: list[Any] = []
        for device in devices:
            module = torch.get_device_module(device)
            stream = getattr(module, "current_stream", None)  # MPS has but one
            self._events.append(module.Event())
            self._events[-1].record(*([stream(device)] if stream else []))

    def ready(self) -> bool:
        return all(event.query() for event in self._events)

    def wait(self) -> tuple[Tensor, ...]:
        for event in self._events:
            event.synchronize()
        return self._copies


class DelayedValue:
    """A value of the device that is read without waiting, some steps late."""

    def __init__(self) -> None:
        self._pending: PendingCopy | None = None

    def poll(self, value: Tensor) -> Tensor | None:
        """Return the copy that arrived since the last call, else None; start one if idle."""
        if self._pending is None:
            self._pending = PendingCopy(value)
        if not self._pending.ready():
            return None
        (seen,), self._pending = self._pending.wait(), None
        return seen


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the device's global generator by device type; empty for the CPU."""
    if device.type == "cpu":
        return {}
    return {device.type: torch.get_device_module(device).get_rng_state()}


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore ``rng_state``; the state of another type of device is ignored."""
    if device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type].cpu())


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory_gib(device: torch.device) -> float | None:
    """Return the peak memory of tensors on the device; None if torch cannot tell."""
    if device.type == "cpu":
        return None
    peak = getattr(torch.get_device_module(device), "max_memory_allocated", None)
    return None if peak is None else peak(device) / 2**30


def describe(device: torch.device) -> str:
    """Return the device in words: "cuda: NVIDIA H100", "cpu: x86_64, 2 threads"."""
    if device.type == "cpu":
        return f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(device) if name is None else f"{device.type}: {name(device)}"
