"""Random negatives: the baseline that every other miner has to beat."""

from torch import Tensor

from .base import Miner


class Random(Miner):
    """Draws each pair's negative uniformly from the images of other classes."""

    def weights(
        self, embeds: Tensor, different: Tensor, anchors: Tensor, positives: Tensor
    ) -> Tensor:
        return different[anchors].to(embeds.dtype)
