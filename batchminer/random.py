"""Random negatives: the baseline that every other miner has to beat."""

from torch import Tensor

from .base import NegativeMiner


class Random(NegativeMiner):
    """Draws each pair's negative uniformly from the images of other classes."""

    def weights(
        self,
        embeds: Tensor,
        references: Tensor,
        negative: Tensor,
        anchors: Tensor,
        positives: Tensor,
    ) -> Tensor:
        return negative[anchors]
