"""Smooth-AP loss.

Brown, Xie, Kalogeiton and Zisserman, Smooth-AP: Smoothing the Path Towards Large-Scale Image
Retrieval, ECCV 2020, equations 7 and 8.
"""

import torch
from torch import Tensor

from utilities.pairs import pair_masks
from utilities.structures import References

from .base import PairCriterion
from .gradient import with_gradient


class SmoothAP(PairCriterion):
    """One minus the average precision of each image as a query, with ranks made smooth.

        L = 1/m Σ_a 1 - AP_a
        AP_a = 1/|P_a| Σ_{p ∈ P_a} (1 + Σ_{j ∈ P_a} G_jp) / (1 + Σ_{j ∈ P_a ∪ N_a} G_jp)
        G_jp = 1 / (1 + exp(-(S_aj - S_ap) / τ)) for j ≠ p

    G becomes a step as τ goes to 0. The numerator is then the rank of p among the positives P_a of
    the image, the denominator its rank among these and the negatives N_a. m counts the images that
    have positives; the others are left out.

    The authors' code needs classes of one size, in order, and counts an image as a positive of its
    own. Here classes have any size, and in a batch without other references an image is neither
    its own positive nor in its own ranking. Memory and time are O(T R) for T positive pairs and R
    references: against a memory of few classes, in which T grows with R, they are quadratic in R.

    Args:
        temperature: τ > 0, in similarity.

    Shapes: embeds (B, D) unit rows (similarity is their inner product), labels (B,) int64; returns
    a scalar in [0, 1).

    Raises:
        ValueError: ``temperature`` is not positive.
    """

    def __init__(self, *, temperature: float = 0.01) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(
                f"--loss_smooth_ap_temperature {temperature} is no temperature; use one above 0"
            )
        self.temperature = temperature

    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Tensor:
        with torch.no_grad():
            if references is None:
                sims = (embeds @ embeds.T).fill_diagonal_(-torch.inf)  # not in its own ranking
                loss, slopes = self._loss_and_slopes(sims, pair_masks(labels)[0])
                gradient = (slopes + slopes.T) @ embeds  # both images of a pair move
            else:
                sims = embeds @ references.embeds.T
                positive, _ = pair_masks(labels, references.labels)
                loss, slopes = self._loss_and_slopes(sims, positive)
                gradient = slopes @ references.embeds
        return with_gradient(loss, embeds, gradient)

    def _loss_and_slopes(self, sims: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and its derivative with respect to the similarities, both (B, R)."""
        anchors, positives = positive.nonzero(as_tuple=True)  # (T,), the one wait for the device
        relevant = positive.to(sims.dtype)
        n_positives = relevant.sum(dim=1)  # (B,)
        weight = 1 / (n_positives * n_positives.count_nonzero())[anchors]  # of each pair, sum 1

        sims_ap = sims[anchors, positives]
        above = sims[anchors].sub_(sims_ap[:, None]).div_(self.temperature).sigmoid_()  # G, (T, R)
        relevant = relevant[anchors]  # (T, R) 0 or 1
        # Each sum holds j = p, where G = 1/2, and lacks as much of the leading 1.
        rank = above.sum(dim=1) + 0.5  # among all references
        precision = ((above * relevant).sum(dim=1) + 0.5) / rank
        loss = weight @ (1 - precision)

        # ∂L/∂G_jp = weight / rank (precision - [j ∈ P]); ∂G_jp/∂S_aj = -∂G_jp/∂S_ap = G (1 - G) / τ
        scale = weight / rank / -self.temperature
        slopes_j = relevant.sub_(precision[:, None]).mul_(scale[:, None]).mul_(above)
        slopes_j.addcmul_(slopes_j, above, value=-1)
        slopes = torch.zeros_like(sims).index_add_(0, anchors, slopes_j)
        slopes.index_put_((anchors, positives), -slopes_j.sum(dim=1), accumulate=True)
        return loss, slopes
