"""What every miner shares: masks of the pairs, its own generator, draws by weight."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from utilities.pairs import pair_masks
from utilities.structures import References, Triplets


class Miner(nn.Module, ABC):
    """Chooses the triplets (anchor, positive, negative) that a loss looks at.

    A subclass writes ``mine``; one that gives each pair a negative drawn by weight derives from
    ``NegativeMiner`` and writes the weights.

    It is a module so that the state of its generator travels in the ``state_dict`` of whatever
    criterion holds it.

    Args:
        seed: of the miner's own generator, which is made on the device of the first batch. A state
            restored on another kind of device starts anew from the seed.

    Shapes: embeds (B, D) of any floating type, labels (B,) int64; returns T triplets, T = 0 where
    there are none, such as in a batch of one class. With ``references`` (R of them) positives and
    negatives are indices into these, else into the batch. Mining runs in float32 also inside
    autocast, and has no gradient.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self._generator: torch.Generator | None = None
        self._saved: dict[str, Tensor] = {}  # device type -> generator state, until it is needed

    @abstractmethod
    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        """The triplets of a batch.

        Args:
            embeds: (B, D) float32.
            references: (R, D) float32; the batch itself where there are no others.
            positive, negative: (B, R) bool, which references are of the image's class and which of
                another; the image itself is neither.
        """

    @torch.no_grad()
    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Triplets:
        with torch.autocast(embeds.device.type, enabled=False):
            embeds = embeds.float()
            if references is None:
                return self.mine(embeds, embeds, *pair_masks(labels))
            masks = pair_masks(labels, references.labels)
            return self.mine(embeds, references.embeds.float(), *masks)

    def generator(self, device: torch.device) -> torch.Generator:
        """The miner's own source of chance, on ``device``."""
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


class NegativeMiner(Miner):
    """Gives every (anchor, positive) pair one negative, drawn by weight.

    A subclass writes only ``weights``. With two images per class there is one pair per anchor, as
    in Roth et al., Revisiting Training Strategies and Generalization Performance in Deep Metric
    Learning, ICML 2020; with more per class each of an anchor's positives is used, where they draw
    one of them. T = the sum over classes of n (n - 1) in a batch without other references. Mining
    takes O(T R) memory.
    """

    @abstractmethod
    def weights(
        self,
        embeds: Tensor,
        references: Tensor,
        negative: Tensor,
        anchors: Tensor,
        positives: Tensor,
    ) -> Tensor:
        """Unnormalised probabilities of each reference as the negative of each pair.

        Args:
            embeds: (B, D) float32.
            references: (R, D) float32.
            negative: (B, R) bool; every anchor has at least one.
            anchors, positives: (T,) int64, the pairs.

        Returns:
            (T, R), each row non-negative, finite, with a positive sum, and zero off ``negative``.
        """

    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        pairs = positive & negative.any(dim=1, keepdim=True)
        anchors, positives = pairs.nonzero(as_tuple=True)  # (T,), the one wait for the device
        weights = self.weights(embeds, references, negative, anchors, positives)  # (T, R)
        return Triplets(anchors, positives, self.draw(weights))

    def draw(self, weights: Tensor) -> Tensor:
        """One column for each row of ``weights`` (T, R), with probability proportional to it.

        By inverting the cumulative sum: one random number per row, where torch.multinomial takes
        one per entry. In rare roundings the number lands on a column of zero weight or past the
        end; the row's heaviest column is taken then, so that no negative is ever a positive.
        """
        edges = weights.cumsum(dim=1)
        drawn = torch.rand(
            len(weights), 1, device=weights.device, generator=self.generator(weights.device)
        )
        columns = torch.searchsorted(edges, drawn * edges[:, -1:], right=True)
        columns = columns.clamp(max=weights.shape[1] - 1)
        heaviest = weights.argmax(dim=1, keepdim=True)
        return torch.where(weights.gather(1, columns) > 0, columns, heaviest).squeeze(1)
