"""One epoch of batches behind a progress bar: what was seen, how fast, and at what loss."""

from collections.abc import Iterable, Iterator, Sized
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor
from tqdm import tqdm

from utilities.timing import Stopwatch

T = TypeVar("T")


class Progress(Generic[T]):
    """Iterates over ``batches`` and keeps the epoch's averages.

    The time until a batch is there counts as "data", the rest of each turn as "step": where much is
    spent waiting for data, more or faster loading is what speeds training up.
    """

    def __init__(self, batches: Iterable[T], title: str) -> None:
        self.batches = batches
        self.title = title
        self.watch = Stopwatch()
        self.n_images = 0
        self.terms: dict[str, list[Tensor]] = {}

    def __iter__(self) -> Iterator[T]:
        total = len(cast(Sized, self.batches))
        with tqdm(total=total, desc=self.title, unit="batch", leave=False) as self.bar:
            for batch in self.watch.waiting(self.batches):
                with self.watch.section("step"):
                    yield batch
                self.bar.update()

    def count(self, n_images: int, **terms: Tensor) -> None:
        """Add a step's scalar terms, which stay on their device: no one waits for them."""
        self.n_images += n_images
        for name, value in terms.items():
            self.terms.setdefault(name, []).append(value.detach())
        speed = self.watch.images_per_second(self.n_images)
        shown = next(iter(terms.values()), None)
        self.bar.set_postfix(
            {"images/s": f"{speed:.0f}"}
            | ({} if shown is None else {"loss": f"{shown.item():.3f}"}),
            refresh=False,
        )

    def averages(self) -> dict[str, float]:
        """Mean of each term over the steps that had it, images per second, share of waiting."""
        seconds = sum(self.watch.seconds.values())
        return {
            **{name: torch.stack(values).mean().item() for name, values in self.terms.items()},
            "images_per_second": self.watch.images_per_second(self.n_images),
            "waiting_for_data": self.watch.seconds["data"] / seconds if seconds else 0.0,
        }
