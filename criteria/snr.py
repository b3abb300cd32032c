"""Signal-to-noise ratio loss: Yuan, Deng, Tang, Tang and Chen, Signal-to-Noise Ratio: A Robust
Distance Metric for Deep Metric Learning, CVPR 2019, its triplet form.
"""

import torch
from torch import Tensor

from batchminer import Miner
from utilities.structures import References

from .base import PairCriterion, require_at_least
from .primitives import chosen_distances, hinge_mean

EPS = 1e-12  # added to the signal |a - mean(a)|², which is 0 where all components are equal


class SNR(PairCriterion):
    """A triplet loss whose distance is the noise that turns the anchor into the other image.

        L = 1/A Σ_(a,p,n) [ d(a,p) - d(a,n) + margin ]₊  +  reg_lambda 1/B Σ_i |Σ_k x_ik|
        d(a,x) = var(a - x) / var(a)

    The variance is over the D components of an embedding; the second term keeps their mean near 0.
    A counts the active triplets, at least 1. The code of Roth et al., ICML 2020, averages the
    second term over the anchors of the triplets, and leaves it out under distance mining.

    Args:
        miner: chooses the triplets, by Euclidean distance where it uses one.
        margin: a difference of two ratios, >= 0.
        reg_lambda: weight of the second term, >= 0.

    Shapes: embeds (B, D), labels (B,) int64; returns a scalar >= 0, which is the second term
    without any triplet.
    """

    def __init__(self, miner: Miner, *, margin: float = 0.2, reg_lambda: float = 0.005) -> None:
        super().__init__()
        require_at_least(0, margin=margin, reg_lambda=reg_lambda)
        self.miner = miner
        self.margin = margin
        self.reg_lambda = reg_lambda

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        anchors, positives, negatives = self.miner(embeds, labels, references)  # (T,) each
        others = torch.stack((positives, negatives))
        # Of rows minus their own mean, D var(x) is the squared length and D var(a - x) the squared
        # distance of two.
        centred = _centred(embeds)
        if references is not None:
            references = references._replace(embeds=_centred(references.embeds))
        noise_ap, noise_an = chosen_distances(centred, references, anchors, others, squared=True)
        signal = (centred.square().sum(dim=1) + EPS).index_select(0, anchors)  # (T,)
        loss = hinge_mean((noise_ap - noise_an) / signal + self.margin)
        return loss + self.reg_lambda * embeds.sum(dim=1).abs().mean()


def _centred(embeds: Tensor) -> Tensor:
    return embeds - embeds.mean(dim=1, keepdim=True)
