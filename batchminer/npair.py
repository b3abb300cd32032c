"""The tuples of the N-pair loss: Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss
Objective, NeurIPS 2016, section 3.2.
"""

import torch
from torch import Tensor

from utilities.pairs import pair_masks
from utilities.structures import Triplets

from .base import Miner, any_in_row, places


class NPair(Miner):
    """Gives each anchor one random positive, and one random negative of every other class.

    In the paper all anchors share a class's negative. The code of Roth et al., ICML 2020, takes all
    images of other classes as negatives.

    T = Σ over the images with a positive of the number of other classes: 6,160 at B = 112 and two
    per class, 130,560 at B = 512. O(B R + T) memory.
    """

    def candidates(self, labels: Tensor, reference_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        positive, negative = pair_masks(labels, reference_labels)
        others = labels if reference_labels is None else reference_labels
        return positive, negative & self._one_of_each_class(others, len(labels))

    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        # (T,) each; the one wait for the device
        anchors, negatives = places(negative & any_in_row(positive)[:, None])
        return Triplets(anchors, self.draw(positive)[anchors], negatives)

    def _one_of_each_class(self, labels: Tensor, rows: int) -> Tensor:
        """Return a mask (rows, R) of a random column of each class in each row."""
        # The images of a class are ranked at random, and a row takes the rank at one random
        # fraction of each class's size. Its picks are independent, since the ranks are.
        device, generator = labels.device, self.generator(labels.device)
        shuffle = torch.randperm(len(labels), device=device, generator=generator)
        ordered, order = labels[shuffle].sort()  # the classes in blocks, (R,)
        starts = torch.searchsorted(ordered, ordered)
        ends = torch.searchsorted(ordered, ordered, right=True)
        back = shuffle[order].argsort()  # from block order to the order of the labels
        ranks = (torch.arange(len(labels), device=device) - starts)[back]
        sizes = (ends - starts)[back]
        fractions = torch.rand(rows, 1, device=device, generator=generator)
        return ranks == (fractions * sizes).long()
