"""Random negatives, from other classes or, as a control, from the anchor's own."""

from torch import Tensor

from utilities.structures import Triplets

from .base import Miner, NegativeMiner, any_in_row


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


class IntraRandom(Miner):
    """Draws positive and negative both from the anchor's own class: a control.

    Two independent uniform draws among all images of the class, including the anchor, as in the
    code of Roth et al., ICML 2020, which draws B classes, and an anchor in each; here each image
    that is not alone in its class is anchor once.
    """

    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        members = ~negative  # of the class, and the image itself if it is among the references
        positives, negatives = self.draw(members), self.draw(members)  # (B,)
        anchors = any_in_row(positive).nonzero().squeeze(1)
        return Triplets(anchors, positives[anchors], negatives[anchors])
