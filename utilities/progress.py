"""One epoch of batches: how many images, how fast, at what loss; bars on a terminal."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from utilities import distributed
from utilities.device import DelayedValue
from utilities.timing import Stopwatch

LOG = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

SIGN_OF_LIFE = 600.0  # seconds between two lines on a long epoch that no bar shows


def bar(items: Iterable[T] | None = None, *, hidden: bool = False, **options: Any) -> Any:
    """Return a progress bar over items, or to be updated; it vanishes at its end.

    The first process alone shows it, and only on a terminal: a file would hold every redrawing.
    """
    hidden = hidden or not distributed.is_first()
    return tqdm(items, leave=False, disable=hidden or None, **options)


def in_threads(
    function: Callable[[T], R], items: Sequence[T], title: str, *, leave: bool = False
) -> list[R]:
    """Apply a function to each item, in a thread per core, behind a progress bar as ``bar``."""
    return thread_map(
        *(function, items), max_workers=os.cpu_count(), desc=title, unit="image", leave=leave,
        disable=None, tqdm_class=tqdm,
    )  # fmt: skip


class Progress:
    """Keeps the averages of an epoch, over all runs of the program that it takes.

    The time until a batch is there counts as "data", the rest of each turn as "step".
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        """Begin another epoch."""
        self.watch = Stopwatch()
        self.n_images = 0
        self.terms: dict[str, list[Tensor]] = {}
        self._earlier: dict[str, Tensor] = {}  # before the run was interrupted
        self._watched = DelayedValue()
        self._shown: dict[str, str] = {}

    def over(self, batches: Iterable[T], n_batches: int, title: str) -> Iterator[T]:
        told = time.monotonic()
        with bar(total=n_batches, desc=title, unit="batch") as self.bar:
            for number, batch in enumerate(self.watch.waiting(batches), start=1):
                with self.watch.section("step"):
                    yield batch
                self.bar.update()
                if self.bar.disable and time.monotonic() - told >= SIGN_OF_LIFE:
                    told = time.monotonic()
                    shown = ", ".join(f"{name} {value}" for name, value in self._shown.items())
                    LOG.info("%s: batch %d of %d, %s", title, number, n_batches, shown)

    def count(self, n_images: int, **terms: Tensor) -> None:
        """Add a step's scalar terms, the loss first; nothing waits, so the bar may lag behind."""
        self.n_images += n_images
        for name, value in terms.items():
            self.terms.setdefault(name, []).append(value.detach())
        speed = self.watch.images_per_second(self.n_images)
        loss = next(iter(terms.values()), None)
        seen = None if loss is None else self._watched.poll(loss)
        if seen is not None:
            self._shown["loss"] = f"{float(seen):.3f}"
        self._shown["images/s"] = f"{speed:.0f}"
        self.bar.set_postfix(self._shown, refresh=False)

    def show(self, prefix: str, values: Mapping[str, float]) -> None:
        """Report ``values`` as ``<prefix>/<name>`` from now on, in later epochs, too."""
        self.latest |= {f"{prefix}/{name}": value for name, value in values.items()}

    def averages(self) -> dict[str, float]:
        """Return each mean ``train/<term>``, the speed of loading, and what ``show`` reported.

        ``train/images_per_second`` and ``train/waiting_for_data`` (a share of the time) are of this
        process since it started, and 0 without a step; terms are means over all processes, and
        over the steps in which they are numbers.
        """
        seconds = sum(self.watch.seconds.values()) if self.n_images else 0.0
        return {
            **{
                f"train/{name}": float(distributed.mean(values.nanmean()))
                for name, values in self._terms_so_far().items()
            },
            "train/images_per_second": self.watch.images_per_second(self.n_images),
            "train/waiting_for_data": self.watch.seconds["data"] / seconds if seconds else 0.0,
            **self.latest,
        }

    def _terms_so_far(self) -> dict[str, Tensor]:
        both = dict(self._earlier)
        for name, values in self.terms.items():
            late = torch.stack(values).cpu()
            both[name] = torch.cat([both[name], late]) if name in both else late
        return both

    def state_dict(self) -> dict[str, Any]:
        return {"terms": self._terms_so_far(), "latest": dict(self.latest)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._earlier, self.terms = dict(state["terms"]), {}
        self.latest = dict(state["latest"])
