"""Distance-weighted sampling: Wu, Manmatha, Smola and Krähenbühl, Sampling Matters in Deep
Embedding Learning, ICCV 2017, section 4.1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import NegativeMiner

BEYOND = -1e30  # log weight of a negative beyond the upper cutoff, drawn if there is no nearer one


class Distance(NegativeMiner):
    """Draws negatives uniformly over *distance* instead of uniformly over images.

    Random points of a sphere in D dimensions lie at distance d with density
    q(d) ~ d^(D-2) (1 - d²/4)^((D-3)/2), nearly all of them around sqrt(2). A negative is drawn with
    weight 1/q(d), so that near and far ones are met alike.

    Embeddings are normalised first; one that is not finite counts as being at sqrt(2) from all
    others. An anchor without any negative below ``upper_cutoff`` draws uniformly from all its
    negatives. The code of Roth et al., ICML 2020, does not apply the upper cutoff.

    Args:
        lower_cutoff: nearer negatives weigh as much as those at this distance, in [0, 2].
        upper_cutoff: negatives at or beyond it are not drawn; the margin loss is zero there.
    """

    def __init__(
        self, seed: int = 0, *, lower_cutoff: float = 0.5, upper_cutoff: float = 1.4
    ) -> None:
        super().__init__(seed)
        for name, value in {"lower_cutoff": lower_cutoff, "upper_cutoff": upper_cutoff}.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and >= 0; got {value:g}")
        self.lower_cutoff = lower_cutoff
        self.upper_cutoff = upper_cutoff

    def weights(
        self,
        embeds: Tensor,
        references: Tensor,
        negative: Tensor,
        anchors: Tensor,
        positives: Tensor,
    ) -> Tensor:
        dim = embeds.shape[1]
        units = on_the_sphere(embeds)
        others = units if references is embeds else on_the_sphere(references)
        squares = torch.addmm(units.new_full((), 2.0), units, others.T, alpha=-2)  # d², (B, R)

        # For D in the hundreds 1/q exceeds a float's range, so we stay in logarithms up to the
        # softmax, which cancels constant factors: 4 - d² stands for 1 - d²/4. The cutoff is added,
        # since a choice by mask takes a CPU ten times as long.
        log_weights = squares.clone().ge_(self.upper_cutoff**2).mul_(BEYOND)
        eps = torch.finfo(squares.dtype).eps
        squares.clamp_(min=max(self.lower_cutoff**2, eps), max=4 * (1 - eps))
        log_weights.add_((4 - squares).log_(), alpha=(3 - dim) / 2)
        log_weights.add_(squares.log_(), alpha=(2 - dim) / 2)
        weights = log_weights.masked_fill_(~negative, -torch.inf).softmax(dim=1)  # (B, R)
        return weights.index_select(0, anchors)


class RandomDistance(Distance):
    """Mines as ``Distance`` does, after shuffling the labels: a control, structure without meaning.

    Source: the code of Roth et al., ICML 2020, which does not apply the upper cutoff. The labels of
    other references are shuffled among themselves.
    """

    def candidates(self, labels: Tensor, reference_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        others = None if reference_labels is None else self._shuffled(reference_labels)
        return super().candidates(self._shuffled(labels), others)

    def _shuffled(self, labels: Tensor) -> Tensor:
        generator = self.generator(labels.device)
        return labels[torch.randperm(len(labels), device=labels.device, generator=generator)]


def on_the_sphere(embeds: Tensor) -> Tensor:
    """Return rows of length 1; one that is not finite becomes 0, at sqrt(2) from all others."""
    return F.normalize(embeds, dim=1).nan_to_num_()
