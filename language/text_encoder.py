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

    def unknown(self, texts: Sequence[str]) -> Tensor:
        """Return (N,) float32, the share of each text's tokens that the encoder does not know."""
        return torch.zeros(len(texts))


def unit_rows(embeds: Tensor, name: str) -> Tensor:
    """Return the rows of ``embeds`` (N, D) scaled to length 1; zero rows stay zero."""
    if not torch.isfinite(embeds).all():
        raise ValueError(f"--language_model {name} returns text embeddings that are not finite")
    return F.normalize(embeds.float(), dim=1)


def embed_captions(encoder: TextEncoder, captions: Sequence[str]) -> Tensor:
    """Return (N, D) unit rows of N images' captions, each a text with a line for each caption.

    The row of several captions is the mean of their unit embeddings, normalised again.
    """
    lines = [caption.split("\n") for caption in captions]
    embeds = encoder.encode([line for some in lines for line in some])
    if len(embeds) == len(captions):
        return embeds
    owner = torch.arange(len(lines)).repeat_interleave(torch.tensor([len(some) for some in lines]))
    sums = embeds.new_zeros(len(lines), embeds.shape[1]).index_add_(0, owner, embeds)
    return F.normalize(sums, dim=1)
