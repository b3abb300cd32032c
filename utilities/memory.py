"""The memory of this process: how much it has used, and how it keeps it between batches."""

import ctypes
import platform
import sys

# Parameters of mallopt(3), from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

GIB = 1 << 30


def keep_freed_memory() -> bool:
    """Keep freed tensors' memory in the process; return whether that works here (glibc only).

    glibc returns every large block to the kernel, so that each batch faults its activations in
    again, page by page. Call it before the first tensor; the process does not shrink afterwards.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    # Older glibc takes at most 32 MiB for the first; half the effect is better than none.
    kept = mallopt(M_MMAP_THRESHOLD, GIB) or mallopt(M_MMAP_THRESHOLD, 32 << 20)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_memory_mb() -> float:
    """Return the peak memory of this process in MiB; nan on Windows."""
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB here
