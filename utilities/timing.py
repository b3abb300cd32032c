"""Measure the time of a run's sections."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Seconds by named section; pending GPU work counts where its result is first needed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``, also if it raises."""
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
        """Return ``n_images`` over the seconds of the named sections, or of all; 0 before any."""
        seconds = sum(self.seconds.get(name, 0.0) for name in names or self.seconds)
        return n_images / seconds if seconds > 0 else 0.0
