"""Distance-weighted sampling with ρ-regularisation: Roth et al., Revisiting Training Strategies and
Generalization Performance in Deep Metric Learning, ICML 2020, section 5.
"""

import torch
from torch import Tensor

from utilities.pairs import pairwise_distances
from utilities.structures import Triplets

from .distance import Distance


class RhoDistance(Distance):
    """Mines as ``Distance`` does, but with some probability pushes a class's own images apart.

    With probability ``cp`` the triplet (a, p, n) becomes (a, a, p), which only pushes apart two
    images of one class, against embeddings that use too few directions. Other references need not
    hold the anchor; there its nearest positive replaces it as the positive.

    Args:
        cp: probability that a triplet is switched, in [0, 1].
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        lower_cutoff: float = 0.5,
        upper_cutoff: float = 1.4,
        cp: float = 0.2,
    ) -> None:
        super().__init__(seed, lower_cutoff=lower_cutoff, upper_cutoff=upper_cutoff)
        if not 0 <= cp <= 1:
            raise ValueError(f"cp must be in [0, 1]; got {cp:g}")
        self.cp = cp

    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        anchors, positives, negatives = super().mine(embeds, references, positive, negative)
        generator = self.generator(embeds.device)
        numbers = torch.rand(len(anchors), device=embeds.device, generator=generator)
        switched = numbers < self.cp  # (T,)
        if references is embeds:
            itself = anchors
        else:
            distances = pairwise_distances(embeds, references).nan_to_num_()
            itself = torch.where(positive, distances, torch.inf).argmin(dim=1)[anchors]
        return Triplets(
            anchors,
            torch.where(switched, itself, positives),
            torch.where(switched, positives, negatives),
        )
