"""Every triplet of a batch: Song, Xiang, Jegelka and Savarese, Deep Metric Learning via Lifted
Structured Feature Embedding, CVPR 2016, section 4: each pair looks at all negatives.
"""

from torch import Tensor

from utilities.structures import Triplets

from .base import Miner, every_triplet


class Lifted(Miner):
    """Gives each (anchor, positive) pair each of the anchor's negatives.

    T = Σ over classes of n (n - 1) (B - n) in a batch without other references: 12,320 at B = 112
    and two per class, 261,120 at B = 512. O(T) memory.
    """

    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        return every_triplet(positive, negative)
