"""Distance-weighted sampling with shuffled labels: structure without meaning, as a control.

Roth et al., Revisiting Training Strategies and Generalization Performance in Deep Metric Learning,
ICML 2020; their code.
"""

import torch
from torch import Tensor

from .distance import Distance


class RandomDistance(Distance):
    """Mines as ``Distance`` does, after shuffling the labels over the images of the batch.

    The sizes of the classes stay, their members are random and new at each call. Other references
    have their labels shuffled among themselves. In that code the upper cutoff is not applied.

    Args:
        lower_cutoff, upper_cutoff: as of ``Distance``.
    """

    def candidates(self, labels: Tensor, reference_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        others = None if reference_labels is None else self._shuffled(reference_labels)
        return super().candidates(self._shuffled(labels), others)

    def _shuffled(self, labels: Tensor) -> Tensor:
        generator = self.generator(labels.device)
        return labels[torch.randperm(len(labels), device=labels.device, generator=generator)]
