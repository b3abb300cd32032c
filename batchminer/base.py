"""What every miner shares: one negative for each pair of a class, drawn by weight on the device."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from utilities.structures import Triplets


class Miner(nn.Module, ABC):
    """Chooses the triplets of a batch: every ordered (anchor, positive) pair gets one negative.

    A subclass writes only ``weights``: how likely each image of the batch is as a pair's negative.
    With two images per class there is one pair per anchor, as in Roth et al., Revisiting Training
    Strategies and Generalization Performance in Deep Metric Learning, ICML 2020; with more per
    class each of an anchor's positives is used, where they draw one of them.

    It is a module, without parameters, so that the state of its generator travels in the
    ``state_dict`` of whatever criterion holds it.

    Args:
        seed: of the miner's own generator, which is made on the device of the first batch. A state
            restored on another kind of device starts anew from the seed.

    Shapes: embeds (B, D) of any floating type, labels (B,) int64; returns T triplets, T = the sum
    over classes of n (n - 1). T = 0 in a batch of one class or without any pair. Mining takes
    O(T B) memory, runs in float32 also inside autocast, and has no gradient.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self._generator: torch.Generator | None = None
        self._saved: dict[str, Tensor] = {}  # device type -> generator state, until it is needed

    @abstractmethod
    def weights(
        self, embeds: Tensor, different: Tensor, anchors: Tensor, positives: Tensor
    ) -> Tensor:
        """Unnormalised probabilities of each image as the negative of each pair.

        Args:
            embeds: (B, D) float32.
            different: (B, B) bool, true where two images are of different classes; every anchor
                has at least one.
            anchors, positives: (T,) int64, the pairs.

        Returns:
            (T, B), each row non-negative, finite, with a positive sum, and zero off ``different``.
        """

    @torch.no_grad()
    def forward(self, embeds: Tensor, labels: Tensor) -> Triplets:
        with torch.autocast(embeds.device.type, enabled=False):
            same = labels[:, None] == labels  # (B, B)
            different = ~same
            pairs = same.clone().fill_diagonal_(False) & different.any(dim=1, keepdim=True)
            anchors, positives = pairs.nonzero(as_tuple=True)  # (T,), the one wait for the device
            weights = self.weights(embeds.float(), different, anchors, positives)  # (T, B)
            return Triplets(anchors, positives, self._draw(weights))

    def _draw(self, weights: Tensor) -> Tensor:
        """One column for each row of ``weights`` (T, B), with probability proportional to it.

        By inverting the cumulative sum: one random number per row, where torch.multinomial takes
        one per entry. In rare roundings the number lands on a column of zero weight or past the
        end; the row's heaviest column is taken then, so that no negative is ever a positive.
        """
        edges = weights.cumsum(dim=1)
        drawn = torch.rand(
            len(weights), 1, device=weights.device, generator=self._generator_on(weights.device)
        )
        columns = torch.searchsorted(edges, drawn * edges[:, -1:], right=True)
        columns = columns.clamp(max=weights.shape[1] - 1)
        heaviest = weights.argmax(dim=1, keepdim=True)
        return torch.where(weights.gather(1, columns) > 0, columns, heaviest).squeeze(1)

    def _generator_on(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
            self._generator.manual_seed(self.seed)
            if device.type in self._saved:
                self._generator.set_state(self._saved[device.type].cpu())
        return self._generator

    def get_extra_state(self) -> dict[str, Tensor]:
        if self._generator is None:
            return self._saved
        return {self._generator.device.type: self._generator.get_state()}

    def set_extra_state(self, state: Any) -> None:
        self._saved, self._generator = dict(state), None


def pairwise_distances(embeds: Tensor) -> Tensor:
    """Euclidean distances of the rows of (B, D), from one matrix product: (B, B)."""
    sims = embeds @ embeds.T
    squares = sims.diagonal()
    return (squares[:, None] + squares - 2 * sims).clamp(min=0).sqrt()
