"""The interface of text encoders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class TextEncoder(ABC):
    """Turns texts into unit vectors whose dot products are cosine similarities.

    Attributes:
        name: the value of ``--language_model``.
        fingerprint: changes whenever the vector of a text may change; names the cache file.
    """

    name: str
    fingerprint: str

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return (N, D) float32 unit rows on the CPU; zero rows for what cannot be embedded."""


def unit_rows(embeds: Tensor, name: str) -> Tensor:
    """Return the rows of ``embeds`` (N, D) scaled to length 1; zero rows stay zero."""
    if not torch.isfinite(embeds).all():
        raise ValueError(f"--language_model {name} returns text embeddings that are not finite")
    return F.normalize(embeds.float(), dim=1)
