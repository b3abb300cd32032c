"""The device that computes: which one it is, and what travels between it and the CPU.

Everything goes through ``torch.accelerator``, so CUDA and the tests' pretend device follow one
path. Apple's MPS and Intel's XPU follow it too, untested.
"""

import os
import platform
import re
import shutil
import subprocess
from typing import Any

import torch
from torch import Tensor

CPU = torch.device("cpu")


def choose(name: str = "auto", gpu: int = 0) -> torch.device:
    """Return a device that is there, and make it the current one of this process.

    Args:
        name: ``auto`` is the accelerator if torch sees one, else the CPU; anything else is a device
            that torch knows: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ``xpu``.
        gpu: which of several GPUs, unless the name says so. Of processes that torchrun started,
            each takes its own.

    Raises:
        ValueError: torch has no such device here.
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
        there = "cpu" if found is None else f"cpu or {found.type}"
        raise ValueError(f"--device {name}: {_no_gpu(wanted.type)}; use {there}")
    count = torch.accelerator.device_count()
    if own is not None:
        index = int(own)
        asked = f"torchrun started {index + 1} or more processes here"
    elif wanted.index is not None:
        index, asked = wanted.index, f"--device {name}"
    else:
        index, asked = gpu, f"--gpu {gpu}"
    if index >= count:
        raise ValueError(f"{asked}: this machine has {count} of type {found.type}, from 0 on")
    torch.accelerator.set_device_index(index)
    return torch.device(wanted.type, index)


def idle_driver() -> str | None:
    """Return one line on an NVIDIA driver that torch cannot use; None where all is well."""
    if torch.accelerator.is_available() or shutil.which("nvidia-smi") is None:
        return None
    try:
        said = subprocess.run(
            ["nvidia-smi"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"CUDA (?:UMD )?Version:\s*([\d.]+)", said.stdout)
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


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the CPU to ``device`` while the host goes on, from pinned memory."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Arriving:
    """Copies of tensors on their way to the CPU, which nobody waits for until they are needed.

    On the CPU they are the tensors themselves, there at once.
    """

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
        """Return whether all of them are there; does not wait."""
        return all(event.query() for event in self._events)

    def wait(self) -> tuple[Tensor, ...]:
        """Return the copies, once they are there."""
        for event in self._events:
            event.synchronize()
        return self._copies


class Watched:
    """A value of the device, looked at without waiting: what is seen may be some steps old."""

    def __init__(self) -> None:
        self._arriving: Arriving | None = None

    def look(self, value: Tensor) -> Tensor | None:
        """Return what has arrived since the last look, if anything; ask for ``value`` next.

        On the CPU that is ``value`` itself.
        """
        if self._arriving is None:
            self._arriving = Arriving(value)
        if not self._arriving.ready():
            return None
        (seen,), self._arriving = self._arriving.wait(), None
        return seen


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the device's own global generator, by type of device; none of the CPU."""
    if device.type == "cpu":
        return {}
    return {device.type: torch.get_device_module(device).get_rng_state()}


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore ``rng_state``; that of another type of device is ignored."""
    if device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type].cpu())


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory_gib(device: torch.device) -> float | None:
    """Return the most memory that tensors took on the device; None where torch cannot tell."""
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
