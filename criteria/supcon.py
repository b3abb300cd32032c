"""Supervised contrastive loss.

Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2 (L_out, the mean over positives
outside the logarithm).
"""

from torch import Tensor

from .pair_weighting import PairWeighting, masked_logsumexp


class SupCon(PairWeighting):
    """Classifies each image among all others; every image of its class is a right answer.

        L = 1/A Σ_i  -1/|P_i| Σ_{p ∈ P_i} log( exp(S_ip / τ) / Σ_{k ≠ i} exp(S_ik / τ) )

    P_i holds the other images of the class of i, and A counts the anchors that have any; the others
    are left out. The paper sums over anchors, its code averages, and neither meets an anchor
    without positives since the two views of an image are in one batch there.

    Args:
        temperature: τ > 0.

    Shapes: embeds (B, D) unit rows (similarity is their inner product), labels (B,) int64; returns
    a scalar >= 0.

    Raises:
        ValueError: ``temperature`` is not positive.
    """

    def __init__(self, *, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(
                f"--loss_supcon_temperature {temperature} divides similarities; use one above 0"
            )
        self.temperature = temperature

    def weigh(self, sims: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        counts = positive.count_nonzero(dim=1)[:, None]  # (B, 1), |P_i|
        anchors = (counts > 0).to(sims.dtype)
        n_anchors = anchors.sum().clamp_(min=1)
        logits = sims / self.temperature
        totals, softmax = masked_logsumexp(logits, positive | negative)
        # The mean over an anchor's positives and over anchors, as one weight for each pair.
        targets = positive / (counts * n_anchors).clamp_(min=1)  # (B, R)
        loss = (totals * anchors).sum() / n_anchors - (targets * logits).sum()
        weights = softmax.mul_(anchors / n_anchors).sub_(targets).div_(self.temperature)
        return loss, weights
