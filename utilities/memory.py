"""How the process keeps its memory between batches."""

import ctypes
import platform
import sys

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

GIB = 1 << 30


def keep_freed_memory() -> bool:
    """Keep freed tensors' memory in the process instead of giving it back to the kernel.

    glibc maps every large block anew and unmaps it when freed, so each batch faults its
    activations in again, page by page. With both thresholds high, blocks of up to 1 GiB come from
    the heap and stay there. Call it before the first tensor; peak memory does not change, but a
    process does not shrink between phases.

    Returns:
        whether it took effect: False, and nothing done, without glibc (macOS, Windows, musl).
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    # Older glibc takes at most 32 MiB for the first; half the effect is better than none.
    kept = mallopt(M_MMAP_THRESHOLD, GIB) or mallopt(M_MMAP_THRESHOLD, 32 << 20)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
