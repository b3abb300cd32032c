"""Where a run's time and memory go."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Seconds spent in named sections, added up over a run.

    Nothing waits for a GPU: what it has still to do is waited for in whichever section next needs a
    result.

    Attributes:
        seconds: by section, in order of first use.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Add what happens inside to ``name``, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def waiting(self, items: Iterable[T], name: str = "data") -> Iterator[T]:
        """Iterate over ``items``, adding the time until each is there to ``name``."""
        iterator = iter(items)
        while True:
            with self.section(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def images_per_second(self, n_images: int, *names: str) -> float:
        """``n_images`` over the seconds of the sections ``names``, or of all; 0 before any."""
        seconds = sum(self.seconds.get(name, 0.0) for name in names or self.seconds)
        return n_images / seconds if seconds > 0 else 0.0


def peak_memory_mb() -> float:
    """The most memory this process has held so far, in MiB; loader workers count for themselves.

    nan on Windows, which does not tell.
    """
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)  # bytes there, KiB here
