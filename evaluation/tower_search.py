"""Search by words of a text tower in the space of an image tower, without a map fitted in between.

The towers are CLIP's own, by the weights that the backbone started from (``zero_shot``), or those
that the run trains on captions (``text_side``).
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.image_set import ImageSet
from evaluation.scores import Scores
from evaluation.word_search import by_words
from utilities.structures import Embedding

LOG = logging.getLogger(__name__)

ZERO_SHOT, TEXT_SIDE = "zero_shot", "text_side"  # in the place of an evaltype
PROMPT = "a photo of a {}"  # as published with CLIP
# Least cosine of one image by two towers of the same weights. A ViT-B/32 of random weights loses
# 2e-7 with weights in half precision, 3e-8 with GELU's tanh approximation, 5e-5 with QuickGELU.
SAME = 0.99999
AT_ONCE = 4096  # images that are projected together


class TowerSearch:
    """Scores names that a text tower embeds into the space of projected features.

    Args:
        kind: what the names of the scores begin with.
        embed_texts: C names -> (C, D).
        embed_images: pooled features (B, F) of the embedder on the CPU -> (B, D).
        metrics: names of metrics of words, as ``metrics`` parses them.
    """

    def __init__(
        self,
        kind: str,
        embed_texts: Callable[[tuple[str, ...]], Tensor],
        embed_images: Callable[[Tensor], Tensor],
        metrics: Sequence[str],
    ) -> None:
        self.kind = kind
        self.embed_texts = embed_texts
        self.embed_images = embed_images
        self.metrics = list(metrics)

    @torch.no_grad()
    def scores(self, images: ImageSet, features: Tensor, rows: Tensor) -> Scores:
        """Return ``<kind>/<metric>`` of a set from the features (M, F) of its images ``rows``."""
        embeds = [self.embed_images(some) for some in features.float().cpu().split(AT_ONCE)]
        texts = self.embed_texts(tuple(images.class_names))
        found = Scores({}, {})
        units = F.normalize(torch.cat(embeds), dim=1), F.normalize(texts.float().cpu(), dim=1)
        found.add(by_words(images, units[0], rows, [units[1]], self.metrics), f"{self.kind}/")
        return found


class ImageTower(Protocol):
    """As in ``architectures.image_tower``."""

    @property
    def text_tower(self) -> str: ...
    @property
    def projection(self) -> nn.Module: ...
    @property
    def images(self) -> Tensor: ...
    @property
    def embeds(self) -> Tensor: ...


class NamesReader(Protocol):
    """As in ``language.from_flags``."""

    def __call__(self, model: str, names: Sequence[str], prompt: str = "{}") -> Tensor: ...
    def image_features(self, model: str, images: Tensor) -> Tensor | None: ...


def zero_shot(
    tower: ImageTower,
    models: Mapping[str, str],
    names: Iterable[tuple[str, ...]],
    metrics: Sequence[str],
    embed_names: NamesReader,
) -> TowerSearch | None:
    """Return the search by a tower's own projection; None, with a warning, without its text tower.

    A model is the tower's if its own image tower embeds a few images as ``tower`` does.

    Args:
        tower: whose features the embedder returns, before training.
        models: text encoders by their flags, of which the first that fits is taken.
        names: class names of each set to be searched.
        metrics: of words.
        embed_names: reads the names, and knows the image tower beside an encoder.
    """
    reasons: dict[str, str] = {}
    for flag, model in models.items():
        if model in reasons:
            continue
        try:
            reason = _difference(tower, embed_names.image_features(model, tower.images))
        except (OSError, ValueError) as error:
            reason = f"cannot be read ({error})"
        if not reason:
            words = {some: embed_names(model, some, PROMPT) for some in names}
            return TowerSearch(ZERO_SHOT, words.__getitem__, tower.projection, metrics)
        reasons[model] = f"--{flag} {model} {reason}"
    LOG.warning(
        "zero_shot scores are left out: %s; use --evaluation_language_model %s, the text tower of "
        "this backbone",
        *(" and ".join(reasons.values()), tower.text_tower),
    )
    return None


def _difference(tower: ImageTower, embeds: Tensor | None) -> str:
    """Return why the image tower that made ``embeds`` is not ``tower``; empty if it is."""
    if embeds is None:
        return "has no image tower"
    if embeds.shape != tower.embeds.shape:
        return f"has {embeds.shape[1]} dimensions, not {tower.embeds.shape[1]}"
    cosine = float(F.cosine_similarity(embeds, tower.embeds, dim=1).min())
    return "" if cosine > SAME else f"has another image tower (cosine {cosine:.4f})"


@runtime_checkable
class TwoSided(Protocol):
    """An objective that embeds images and texts into one space, such as ``criteria.CLIP``."""

    def to(self, device: torch.device) -> Any: ...
    def embed_images(self, features: Tensor) -> Tensor: ...
    def embed_texts(self, texts: Sequence[str]) -> Tensor: ...


def text_side(criterion: Any, metrics: Sequence[str], device: torch.device) -> TowerSearch | None:
    """Return the search by what an objective trains on captions; None if it has no text side."""
    if not isinstance(criterion, TwoSided):
        return None
    criterion.to(device)
    return TowerSearch(TEXT_SIDE, criterion.embed_texts, criterion.embed_images, metrics)


class AmongTexts(nn.Module):
    """An embedder whose embeddings are those that an objective compares with its texts.

    Args:
        embedder: images (B, 3, H, W) -> ``Embedding``.
        criterion: ``TwoSided``, trained on the features of ``embedder``.
    """

    def __init__(self, embedder: Any, criterion: Any) -> None:
        super().__init__()
        self.embedder = embedder
        self.criterion = criterion
        self.mean, self.std = embedder.mean, embedder.std
        probe = torch.zeros(1, embedder.feature_dim)
        self.embed_dim = criterion.embed_images(probe).shape[1]

    def forward(self, images: Tensor) -> Embedding:
        embedding: Embedding = self.embedder(images)
        return embedding._replace(embeds=self.criterion.embed_images(embedding.features))
