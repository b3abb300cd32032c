"""Language guidance: the similarities of a batch's images by their words.

Source: Roth, Vinyals, Akata, Integrating Language Guidance into Vision-based Deep Metric Learning,
CVPR 2022: one word for each class (ELG) or K ImageNet pseudolabels (PLG).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from language import CONTROLS, SEVERAL
from language.words import Words
from utilities.registry import lookup
from utilities.seeding import cyclic_permutation
from utilities.structures import Batch

ROUNDING = 1e-4  # length of a centred row that is nothing but rounding


class LanguageGuide:
    """Similarity of the words of a batch: S_lang = (1/K) Σ_r S^(r), with S^(r) = E_r E_r^T.

    E_r (B, D) holds the embeddings of the words of rank r of each item, a class or an image. With
    ``several="mean"`` an item has one row instead (K = 1), the normalised mean of its words.
    With ``centre`` a row e becomes (e - m) / |e - m|, with m the mean of the rows of all items:
    what a prompt, or the subject of a dataset, puts into every text is gone.

    A control separates the effect of the words from that of the extra loss. ``permuted`` gives
    every item the words of another, by a random cyclic permutation; items with the same words may
    get them back. ``uniform`` gives every pair the mean of (1/K) Σ_r cos over all ordered pairs of
    two different items: Σ_r (|s_r|² - Σ_i |e_ir|²) / (K n (n - 1)), with s_r = Σ_i e_ir.

    Args:
        embeds: (U, D) unit rows, the embedding of each of ``words.texts``.
        seed: of the permutation.
        control: a key of ``CONTROLS``.
        several: a key of ``SEVERAL``; without effect on items of one word.

    Raises:
        ValueError: an unknown control or mode, a wrong number of rows, or words that are all alike
            with ``centre``.
    """

    def __init__(
        self,
        embeds: Tensor,
        words: Words,
        seed: int = 0,
        *,
        control: str = "none",
        several: str = "ranks",
        centre: bool = False,
    ) -> None:
        lookup(CONTROLS, control, "control")
        lookup(SEVERAL, several, "several")
        if len(embeds) != len(words.texts):
            raise ValueError(f"{len(embeds)} embeddings for {len(words.texts)} texts")
        self.words = words
        self.control = control
        self.several = several
        index = words.index  # (n_items, K)
        if several == "mean":
            embeds, index = words.means(embeds), torch.arange(len(index)).unsqueeze(1)
        self.embeds = _centred(embeds, index) if centre else embeds  # (U or n_items, D)
        self.constant = _mean_similarity(self.embeds, index) if control == "uniform" else None
        self.order = torch.arange(len(index))  # whose words each item has
        if control == "permuted":
            self.order = cyclic_permutation(len(index), np.random.default_rng(seed))
        self.index = index[self.order]

    @torch.no_grad()
    def similarity(self, batch: Batch) -> Tensor:
        """Return the (B, B) similarities of the words of the batch's items, float32 in [-1, 1].

        Under ``uniform`` the diagonal holds the constant too.
        """
        items = batch.labels if self.words.level == "class" else batch.rows  # (B,)
        if self.constant is not None:
            return torch.full((len(items), len(items)), self.constant, device=items.device)
        if self.embeds.device != items.device:  # once: the batches of a run share a device
            self.embeds, self.index = self.embeds.to(items.device), self.index.to(items.device)
        with torch.autocast(items.device.type, enabled=False):  # half precision keeps 3 digits
            words = self.embeds[self.index[items]]  # (B, K, D)
            # The sum over ranks of dot products is one dot product of the ranks side by side.
            side_by_side = words.flatten(start_dim=1)  # (B, K·D)
            return side_by_side @ side_by_side.T / words.shape[1]

    @property
    def class_words(self) -> Tensor | None:
        """(C, D) unit mean of each class's words, permuted under that control; None of images.

        Centred if the guide is. Rows of words without an embedding are zero.
        """
        if self.words.level != "class":
            return None
        embeds = self.embeds.cpu()
        return (embeds if self.several == "mean" else self.words.means(embeds))[self.order]


def _centred(embeds: Tensor, index: Tensor) -> Tensor:
    """Rows (U, D) less the mean row of the items of ``index``, of length 1; zero rows stay zero."""
    filled = embeds.any(dim=1)  # (U,)
    counts = torch.bincount(index.flatten(), minlength=len(embeds)) * filled
    rest = embeds - counts.to(embeds) @ embeds / max(int(counts.sum()), 1)
    rest = torch.where(filled.unsqueeze(1), rest, 0)
    if rest.norm(dim=1).amax() < ROUNDING:
        raise ValueError(
            "centre leaves nothing of words that all have the same embedding; drop it, or give "
            "classes words that differ"
        )
    return F.normalize(rest, dim=1, eps=ROUNDING)


def _mean_similarity(embeds: Tensor, index: Tensor) -> float:
    n, k = index.shape
    if n < 2:
        return 1.0  # there is no pair
    squares = embeds.double().square().sum(dim=1)  # (U,), 1 or 0
    total = 0.0
    for rank in range(k):
        counts = torch.bincount(index[:, rank], minlength=len(embeds)).double()  # (U,)
        # In blocks, so that double precision does not need the whole table twice.
        rank_sum = sum(
            count @ block.double()
            for count, block in zip(counts.split(65536), embeds.split(65536), strict=True)
        )
        total += float((rank_sum * rank_sum).sum() - counts @ squares)
    return total / (k * n * (n - 1))
