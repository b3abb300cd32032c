"""A store of embeddings, for samplers that look at where the images lie in embedding space.

Roth et al., Revisiting Training Strategies and Generalization Performance in Deep Metric Learning,
ICML 2020, section on mini-batch creation.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .class_random import ClassRandom

MEASURES = ("euclidean", "cosine")
MOST_OBSERVED = 256  # batches whose embeddings wait on their device


@dataclass(eq=False, repr=False)
class StoreSampler(ClassRandom):
    """Holds an embedding of every training image, and lets a subclass choose batches by them.

    A subclass writes ``choose``. ``refresh`` sets the whole store, ``observe`` the rows of a batch
    after its step. A pass reads the store as it was when the pass began, so that it makes no
    difference how far ahead of training batches are drawn. With several processes, hand ``refresh``
    and ``observe`` the embeddings gathered from all of them.

    The store and the copy that a pass reads take 4 N D bytes each (4 N d if projected). It is part
    of the ``state_dict``.

    Args, besides those of ClassRandom:
        batchmatch_bigbs: images drawn at random for each batch, from which or after which it is
            formed; all N if there are fewer. At least ``bs``.
        sampler_lowproj_dim: d, dimensions to which a Gaussian random projection, drawn for each
            pass, takes the store; -1, or no fewer than it has, projects nothing. The released code
            draws one for each batch.
        sim_measure: "euclidean" compares the embeddings as they are, "cosine" their directions.
        mb_mom: m in [0, 1), in the store's row = m · row + (1 - m) · the batch's embedding; -1
            replaces, as 0 does. The released code applies momentum to full refreshes alone.
        store_every: epochs from one full refresh to the next; 0 has only one, before the first.

    Raises:
        ValueError: as ClassRandom; a value out of its range; a pass or ``observe`` before the first
            ``refresh``; embeddings of another number of images, or not finite.
    """

    class_replacement: bool = field(default=False, init=False)
    _: KW_ONLY
    batchmatch_bigbs: int = 512
    sampler_lowproj_dim: int = -1
    sim_measure: str = "euclidean"
    mb_mom: float = -1
    store_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        dim, momentum = self.sampler_lowproj_dim, self.mb_mom
        if self.batchmatch_bigbs < self.bs:
            raise ValueError(
                f"batchmatch_bigbs must be at least bs = {self.bs}; got {self.batchmatch_bigbs}"
            )
        if dim < 1 and dim != -1:
            raise ValueError(
                f"sampler_lowproj_dim must be 1 or more, or -1 for no projection; got {dim}"
            )
        if self.sim_measure not in MEASURES:
            raise ValueError(f"sim_measure must be {' or '.join(MEASURES)}; got {self.sim_measure}")
        if momentum != -1 and not 0 <= momentum < 1:
            raise ValueError(f"mb_mom must be in [0, 1), or -1 to replace; got {momentum}")
        if (every := self.store_every) < 0:
            raise ValueError(
                f"store_every must be 1 or more, or 0 to fill the store only once; got {every}"
            )
        self._store: NDArray[np.float32] | None = None  # what the next pass will read
        self._points: NDArray[np.float32] = np.empty((0, 0), np.float32)  # what this pass reads
        # Batches observed since the store was last read. They stay on their device until then, so
        # that a step does not wait for them.
        self._observed: list[tuple[Tensor, Tensor]] = []

    @abstractmethod
    def choose(self) -> NDArray[np.int64]:
        """Return the rows of the next batch, (bs,), those of a class together."""

    def batches(self) -> Iterator[list[tuple[int, ...]]]:
        self._points = self._visible_store()
        yield from super().batches()

    def points(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the embeddings that this pass reads: rows of any shape (...) give (..., d)."""
        return self._points[rows].astype(np.float64)

    def draw_candidates(self) -> NDArray[np.int64]:
        """Draw rows of images regardless of their classes, all different: bigbs, or N if fewer."""
        size = min(self.batchmatch_bigbs, self.n_images)
        return self.rng.choice(self.n_images, size, replace=False)

    def due(self, epoch: int) -> bool:
        if self._store is None:
            return True
        return self.store_every > 0 and (epoch - 1) % self.store_every == 0

    def refresh(self, embeds: Tensor, rows: Tensor | None = None) -> None:
        """Replace the whole store; the next pass reads it.

        Args:
            embeds: (N, D) in the order of the training set; (M, D) with ``rows``.
            rows: (M,) int64, the images of ``embeds`` if some could not be read; the others get the
                mean of these.
        """
        known = _as_numpy(embeds)
        if rows is None and len(known) != self.n_images:
            raise ValueError(
                f"embeds must be of all {self.n_images} images in the store of "
                f"{type(self).__name__}, or come with their rows; got {len(known)}"
            )
        if not np.isfinite(known).all():
            raise ValueError(
                f"embeds for the store of {type(self).__name__} must be finite; lower --lr, or "
                "train with --precision fp32"
            )
        self._observed.clear()
        if rows is None:
            self._store = known.copy()
        else:
            self._store = np.tile(known.mean(axis=0), (self.n_images, 1))
            self._store[rows.cpu().numpy()] = known

    def observe(self, rows: Tensor, embeds: Tensor) -> None:
        """Store embeddings (B, D) of rows (B,), on any device; of equal rows the last counts."""
        self._check_filled()
        self._observed.append((rows, embeds.detach()))
        if len(self._observed) == MOST_OBSERVED:
            self._filled_store()

    def observed(self) -> dict[str, Any]:
        return {"store": self.state_dict()["store"]}

    def load_observed(self, state: dict[str, Any]) -> None:
        if state["store"] is not None:
            self.refresh(state["store"])

    def state_dict(self) -> dict[str, Any]:
        """Return the generator's state and the store, (N, D) float32; None before it is set."""
        store = None if self._store is None else torch.from_numpy(self._filled_store().copy())
        return super().state_dict() | {"store": store}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._store = None
        self._observed.clear()
        if state["store"] is not None:
            self.refresh(state["store"])

    def _check_filled(self) -> NDArray[np.float32]:
        if self._store is None:
            raise ValueError(
                f"{type(self).__name__} chooses images by their embeddings and has none yet; call "
                f"refresh with those of all {self.n_images} training images first"
            )
        return self._store

    def _filled_store(self) -> NDArray[np.float32]:
        """Return the store with everything that was observed."""
        store, m = self._check_filled(), np.float32(max(self.mb_mom, 0.0))
        for rows, embeds in self._observed:
            at = rows.cpu().numpy()
            store[at] = m * store[at] + (1 - m) * _as_numpy(embeds)
        self._observed.clear()
        return store

    def _visible_store(self) -> NDArray[np.float32]:
        """Return a copy of the store as a pass reads it, (N, d): projected and normalised."""
        store = self._filled_store()
        dim, d = store.shape[1], self.sampler_lowproj_dim
        if 0 < d < dim:
            # Entries of variance 1/d keep squared distances in expectation.
            axes = self.rng.standard_normal((dim, d)) / d**0.5
            points = store @ axes.astype(np.float32)
        else:
            points = store.copy()
        if self.sim_measure == "cosine":
            norms = np.linalg.norm(points, axis=1, keepdims=True)
            points /= np.maximum(norms, np.finfo(np.float32).tiny)
        return points


def squared_distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return squared Euclidean distances among the rows of (..., n, d): (..., n, n)."""
    # The product loses the digits of what all points share.
    centred = points - points.mean(axis=-2, keepdims=True)
    squares = np.square(centred).sum(axis=-1)
    products = centred @ centred.swapaxes(-1, -2)
    distances = squares[..., :, None] + squares[..., None, :] - 2 * products
    return np.maximum(distances, 0, out=distances)


def _as_numpy(embeds: Tensor) -> NDArray[np.float32]:
    return embeds.detach().float().cpu().numpy()
