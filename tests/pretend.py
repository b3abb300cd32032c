"""Pretend accelerator: finds on a CPU what a GPU would refuse or make the host wait for.

    with pretend.accelerator() as waits:
        model.to("pretend"); loss = model(images.to("pretend")).sum(); loss.backward()
    assert not waits.total()

Tensors report the device ``pretend:0``; their numbers are computed on the CPU. An operation that a
GPU refuses raises `MixedError`: tensors of both devices, a CPU tensor indexed by one of the device,
a generator of the CPU, ``numpy()``. Operations that make the host wait for a GPU are counted by
operation and line, copies from memory that is not pinned included. A copy to the CPU that nobody
waits for holds nonsense until its event has happened. Random numbers of the device have a state of
their own. Not simulated: kernels, streams, memory, half precision, NCCL.

The registration with torch is experimental, and for the whole process; outside of ``accelerator``
the device is not available.
"""

import contextlib
import inspect
import linecache
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]

Waits = Counter[tuple[str, str]]  # (operation, line) -> how often

WAITING = {  # the size or the value of what they return is known to the device alone
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default,
    aten.equal.default, aten._unique2.default, aten.unique_dim.default, aten.bincount.default,
    aten.unique_consecutive.default, aten.repeat_interleave.Tensor,
}  # fmt: skip
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
NONSENSE = {torch.bool: True}  # of a copy that has not arrived yet; -77 of other types


class MixedError(RuntimeError):
    """An operation that a GPU would refuse."""


class _State:
    """State of the pretend device."""

    def __init__(self) -> None:
        self.available = False
        self.waits: Waits = Counter()
        self.chance = torch.Generator()  # of draws that name no generator
        self.seeds: set[int] = set()  # of the device's generators: torch hands on plain ones
        self.pinned: set[int] = set()  # addresses of memory
        self.under_way: list[tuple[Tensor, Tensor]] = []  # copies to the CPU, what they will hold

    def arrive(self) -> None:
        for copy, values in self.under_way:
            copy.copy_(values)
        self.under_way.clear()

    def wait(self, operation: str, times: int = 1) -> None:
        if times:
            self.waits[operation, line()] += times
            self.arrive()


STATE = _State()


def line() -> str:
    """Return the innermost line of this repository outside of this file."""
    frame = inspect.currentframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT)) and path != __file__ and "site-packages" not in path:
            code = linecache.getline(path, frame.f_lineno).strip()
            return f"{Path(path).relative_to(ROOT)}:{frame.f_lineno} {code}"
        frame = frame.f_back
    return "?"


# --------------------------------------------------------------------------------------------------
# The device module of torch
# --------------------------------------------------------------------------------------------------
class Event:
    """Happens at the second query, or when it is waited for; copies have arrived then."""

    def __init__(self, **_: Any) -> None:
        self.queries = 0

    def record(self, _stream: Any = None) -> None:
        self.queries = 0

    def query(self) -> bool:
        self.queries += 1
        if self.queries > 1:
            STATE.arrive()
        return self.queries > 1

    def synchronize(self) -> None:
        if self.queries < 2:
            STATE.wait("event")


class _Module:
    """``torch.pretend``."""

    Event = Event

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def is_available(self) -> bool:
        return STATE.available

    def device_count(self) -> int:
        return int(STATE.available)

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device(self, _: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def current_stream(self, *_: Any) -> None:
        return None

    def synchronize(self, *_: Any) -> None:
        STATE.wait("synchronize")

    def manual_seed_all(self, seed: int) -> None:
        STATE.chance.manual_seed(seed)

    def get_rng_state(self, *_: Any) -> Tensor:
        return STATE.chance.get_state()

    def set_rng_state(self, state: Tensor, *_: Any) -> None:
        STATE.chance.set_state(state)


class _Hook(backend_registration._DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return STATE.available

    def has_primary_context(self, _: int) -> bool:
        return STATE.available


backend_registration._setup_privateuseone_for_python_backend(
    rename="pretend", backend_module=_Module(), hook=_Hook()
)
DEVICE = torch.device("pretend", 0)
_autocast = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_autocast.fallback(torch.library.fallthrough_kernel)  # autocast is accepted and changes nothing


class Generator(torch.Generator):
    """``torch.Generator`` for the pretend device, too."""

    def __new__(cls, device: torch.device | str = "cpu") -> Any:
        if torch.device(device).type != "pretend":
            return torch._C.Generator(device)
        return super().__new__(cls)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.manual_seed(67280421310721)

    device = property(lambda self: DEVICE)

    def manual_seed(self, seed: int) -> "Generator":
        seed = (seed ^ 0x5EED5EED5EED) & (2**63 - 1)  # such as no generator of the CPU has
        STATE.seeds.add(seed)
        super().manual_seed(seed)
        return self


# --------------------------------------------------------------------------------------------------
# Tensors and operations
# --------------------------------------------------------------------------------------------------
class Pretend(Tensor):
    """Tensor of the device; its numbers are in ``raw``."""

    raw: Tensor
    is_cuda = property(lambda self: True)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, raw: Tensor) -> "Pretend":
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(),
            dtype=raw.dtype, device=DEVICE,
        )  # fmt: skip
        made.raw = raw
        return made

    def __init__(self, raw: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return dispatch(func, args, kwargs)

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise MixedError(f"numpy() of {DEVICE} at {line()}")

    __array__ = numpy

    def __deepcopy__(self, memo: Any) -> Any:
        copy: Tensor = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    def tolist(self) -> Any:
        STATE.wait("tolist")
        return self.raw.tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretend({self.raw})"


class _Mode(TorchDispatchMode):
    """Dispatches factories and copies, whose arguments need not be tensors of the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs)


def dispatch(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the CPU as if on the device of its tensors."""
    kwargs, packet = dict(kwargs or {}), func.overloadpacket
    if packet is aten.is_pinned:
        return args[0].untyped_storage().data_ptr() in STATE.pinned
    if packet is aten._pin_memory:
        copy = args[0].clone()
        STATE.pinned.add(copy.data_ptr())
        return copy
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    mine = [tensor for tensor in tensors if isinstance(tensor, Pretend)]
    place = kwargs.get("device")
    here = place is not None and torch.device(place).type == "pretend"
    if not mine and not here:
        return func(*args, **kwargs)
    if packet in (aten.copy_, aten._to_copy):
        return _copy(func, args, kwargs, elsewhere=place is not None and not here)
    _refuse_mixed(func, args, kwargs, tensors)
    if func in WAITING and kwargs.get("output_size") is None:
        STATE.wait(str(func))
    out = _on_the_cpu(func, args, {**kwargs, "device": CPU} if here else kwargs)
    if isinstance(out, Tensor) and args and isinstance(args[0], Pretend) and out is args[0].raw:
        return args[0]
    wrapped = tree_map(lambda leaf: Pretend(leaf) if isinstance(leaf, Tensor) else leaf, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if mine else wrapped


def _copy(func: Any, args: Any, kwargs: dict[str, Any], *, elsewhere: bool) -> Any:
    """Run ``copy_`` or ``to``, from, to or within the device."""
    into = func.overloadpacket is aten.copy_
    source = args[1] if into else args[0]
    patient = not kwargs.get("non_blocking", len(args) > 2 and args[2] if into else False)
    to_device = isinstance(args[0], Pretend) if into else not elsewhere
    if "device" in kwargs:
        kwargs = {**kwargs, "device": CPU}
    if isinstance(source, Pretend) and not to_device:
        out = _on_the_cpu(func, args, kwargs)
        if patient:
            STATE.wait("to the CPU")
        else:
            STATE.under_way.append((out, out.clone()))
            out.fill_(NONSENSE.get(out.dtype, -77 if out.is_signed() else 77))
        return out
    if not isinstance(source, Pretend) and to_device:
        if source.numel() and source.untyped_storage().data_ptr() not in STATE.pinned:
            STATE.wait("from memory that is not pinned")
        elif patient and source.numel():
            STATE.wait("from the CPU")
    out = _on_the_cpu(func, args, kwargs)
    if into:
        return args[0]
    return out if out is source else Pretend(out)


def _on_the_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    raw_args, raw_kwargs = tree_map(
        lambda leaf: leaf.raw if isinstance(leaf, Pretend) else leaf, (args, kwargs)
    )
    raw_kwargs.pop("pin_memory", None)
    if torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
        of_the_cpu = torch.get_rng_state()
        torch.set_rng_state(STATE.chance.get_state())
        try:
            return func(*raw_args, **raw_kwargs)
        finally:
            STATE.chance.set_state(torch.get_rng_state())
            torch.set_rng_state(of_the_cpu)
    try:
        return func(*raw_args, **raw_kwargs)
    except RuntimeError:
        if func.overloadpacket is not aten.view:
            raise
        return raw_args[0].reshape(raw_args[1])  # what autograd would have as contiguous


def _refuse_mixed(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> None:
    host = [tensor for tensor in tensors if not isinstance(tensor, Pretend) and tensor.dim()]
    if func.overloadpacket in INDEXING and isinstance(args[0], Pretend):
        # torch takes indices of either device, those of the CPU by a copy.
        indices = [index for index in args[1] if index is not None]
        host = [tensor for tensor in host if not any(tensor is index for index in indices)]
        STATE.wait("index of the CPU", sum(not isinstance(index, Pretend) for index in indices))
        STATE.wait("boolean index", sum(index.dtype == torch.bool for index in indices))
    if host and len(host) < len(tensors):
        shapes = [tuple(tensor.shape) for tensor in host]
        raise MixedError(f"{func} of {DEVICE} and of the CPU {shapes} at {line()}")
    generator = kwargs.get("generator")
    if generator is not None and generator.initial_seed() not in STATE.seeds:
        raise MixedError(f"{func} on {DEVICE} with a generator of the CPU at {line()}")


# --------------------------------------------------------------------------------------------------
# Using it
# --------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def accelerator() -> Iterator[Waits]:
    """Make the device available; yield the waits, counted from zero."""
    STATE.waits = Counter()
    STATE.available = True
    torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(..., device=) wants a kernel
    try:
        with _Mode(), mock.patch.object(torch, "Generator", Generator):
            yield STATE.waits
    finally:
        torch._C._set_only_lift_cpu_tensors(False)
        STATE.available = False
        STATE.under_way.clear()
        STATE.pinned.clear()
