"""An embedded image set with its queries, and what all metrics share of it, computed once."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.clustering import kmeans


class Queries(NamedTuple):
    """Q embedded images that are compared with a gallery."""

    embeds: Tensor  # (Q, D) float32
    labels: Tensor  # (Q,) int64, >= 0, of the same numbering as the gallery's


class Classes(NamedTuple):
    """Class numbers from 0 without gaps, in the order of labels, over gallery and queries."""

    of: Tensor  # (N,) int64, of the gallery's images
    asked: Tensor  # (Q,) int64, of the queries
    sizes: Tensor  # (C,) int64, images in the gallery


class Moments(NamedTuple):
    """Mean and variance of the gallery's images of each class, NaN for a class of queries alone."""

    centres: Tensor  # (C, D) float64, means
    variances: Tensor  # (C,) float64, mean of |g - centre|^2


@dataclass(frozen=True)
class Gallery:
    """N embedded images, among which queries look for their class.

    ValueError if shapes do not fit, there is no image, or an embedding is not finite.
    """

    embeds: Tensor  # (N, D) float32, on any device; distances are euclidean, ``unit`` gives cosine
    labels: Tensor  # (N,) int64, >= 0, not necessarily contiguous
    class_words: Tensor | None = None  # (C, Dw) float32 unit rows, the embedded names of classes
    class_groups: tuple[str, ...] | None = None  # C names of the group of each class
    seed: int = 0  # of the initial centroids of k-means
    queries: Queries | None = None  # on the same device; None: each image queries all the others

    def __post_init__(self) -> None:
        _check("a gallery", self.embeds, self.labels)
        if self.queries is not None:
            _check("a set of queries", *self.queries)
            d_queries, d = self.queries.embeds.shape[1], self.embeds.shape[1]
            if d_queries != d:
                raise ValueError(
                    f"queries have {d_queries} dimensions, the gallery has {d}; embed both by one "
                    "model"
                )
        n_named = max(int(self.labels.max()), int(self.asking.labels.max())) + 1
        for name, given in (("class_words", self.class_words), ("class_groups", self.class_groups)):
            if given is not None and len(given) < n_named:
                raise ValueError(f"{name} describes {len(given)} classes, labels need {n_named}")

    def __len__(self) -> int:
        return len(self.embeds)

    @property
    def asking(self) -> Queries:
        """The queries: a separate set, or the gallery's images themselves."""
        return self.queries or Queries(self.embeds, self.labels)

    @cached_property
    def is_unit(self) -> bool:
        """Return whether all embeddings have length 1, up to rounding."""
        parts = (self.embeds, self.asking.embeds)
        return all(bool(((part.norm(dim=1) - 1).abs() < 1e-5).all()) for part in parts)

    @cached_property
    def unit(self) -> "Gallery":
        """The same images with unit embeddings, whose euclidean order is the cosine order.

        Itself if they are unit already, so that euclidean and cosine metrics share one search.
        """
        if self.is_unit:
            return self
        queries = self.queries
        if queries is not None:
            queries = queries._replace(embeds=F.normalize(queries.embeds, dim=1))
        return replace(self, embeds=F.normalize(self.embeds, dim=1), queries=queries)

    @cached_property
    def classes(self) -> Classes:
        """The class of each image and each query."""
        both = torch.cat([self.labels, self.asking.labels]).to(self.embeds.device)
        classes = both.unique(return_inverse=True)[1]
        of, asked = classes[: len(self)], classes[len(self) :]
        return Classes(of, asked, of.bincount(minlength=int(classes.max()) + 1))

    @cached_property
    def moments(self) -> Moments:
        """Mean and variance of each class."""
        of, _, sizes = self.classes
        blocks = list(zip(self.embeds.split(4096), of.split(4096), strict=True))
        centres = self.embeds.new_zeros(len(sizes), self.embeds.shape[1], dtype=torch.float64)
        for embeds, rows in blocks:
            centres.index_add_(0, rows, embeds.double())
        centres /= sizes[:, None]
        variances = centres.new_zeros(len(sizes))
        for embeds, rows in blocks:
            variances.index_add_(0, rows, (embeds - centres[rows]).square().sum(dim=1))
        return Moments(centres, variances / sizes)

    @cached_property
    def clusters(self) -> Tensor:
        """(N,) int64: k-means with as many clusters as this gallery has classes."""
        return kmeans(self.embeds, len(self.labels.unique()), seed=self.seed)

    @cached_property
    def spherical_clusters(self) -> Tensor:
        """(N,) int64: the same by cosine, with unit centroids."""
        n_classes = len(self.labels.unique())
        return kmeans(self.unit.embeds, n_classes, seed=self.seed, spherical=True)

    @cached_property
    def groups(self) -> Tensor:
        """(C,) int32, an id for the group of each class; needs ``class_groups``."""
        assert self.class_groups is not None
        ids = np.unique(self.class_groups, return_inverse=True)[1]
        return torch.from_numpy(ids).to(self.embeds.device, torch.int32)


def _check(what: str, embeds: Tensor, labels: Tensor) -> None:
    """Raise ValueError for anything but embedded images with their labels."""
    if embeds.ndim != 2 or labels.shape != embeds.shape[:1]:
        raise ValueError(
            f"{what} needs embeds (N, D) and labels (N,); got {tuple(embeds.shape)} "
            f"and {tuple(labels.shape)}"
        )
    if not len(embeds):
        raise ValueError(f"{what} needs at least one image; this one is empty")
    n_bad = int((~embeds.square().sum(dim=1).isfinite()).sum())
    if n_bad:
        raise ValueError(
            f"{n_bad} of {len(embeds)} embeddings are not finite, or too large to square; "
            "lower --lr, or evaluate with --precision fp32"
        )
