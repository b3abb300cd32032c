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
    negatives are indices into these, else into the batch. Unless a miner says otherwise, the
    positive is another image of the anchor's class and the negative one of another class. Mining
    runs in float32 also inside autocast, and has no gradient.
    """

    adapt_every: int = 0  # training iterations between calls of ``adapt``; 0: none are wanted

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
            references: (R, D) float32; ``embeds`` itself where there are no others.
            positive, negative: (B, R) bool, the candidates of each image.
        """

    def candidates(self, labels: Tensor, reference_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Which references each image may have as positives and which as negatives, (B, R) bool.

        All that are of its class and of another; the image itself is neither.
        """
        return pair_masks(labels, reference_labels)

    @torch.no_grad()
    def forward(
        self, embeds: Tensor, labels: Tensor, references: References | None = None
    ) -> Triplets:
        with torch.autocast(embeds.device.type, enabled=False):
            embeds = embeds.float()
            if references is None:
                return self.mine(embeds, embeds, *self.candidates(labels, None))
            masks = self.candidates(labels, references.labels)
            return self.mine(embeds, references.embeds.float(), *masks)

    def adapt(self, embeds: Tensor, labels: Tensor) -> dict[str, float]:
        """Learn from how validation images (M, D) of labels (M,) lie; returns what is worth a log.

        The training loop calls it every ``adapt_every`` iterations, always with the same images.
        """
        return {}

    def draw(self, weights: Tensor) -> Tensor:
        """One column of each row of (N, R) weights, with probability proportional to them: (N,).

        Inverts the cumulative sum: one random number per row, where torch.multinomial takes one per
        entry. It lies in (0, total], and the first column whose cumulative sum reaches it is taken.
        The last one does reach it; the one before the taken does not, so that the sum grows there,
        as it never does by a weight of zero: no rounding makes a negative of a positive.

        Args:
            weights: of any type, a mask too; finite, >= 0. A row's sum is at least 1e-30, so that
                a fraction of it is no zero; a row of zeros gives any column.
        """
        edges = weights.float().cumsum(dim=1)
        if edges.device.type != "cpu":
            edges = rising(edges, weights)
        generator = self.generator(weights.device)
        # (0, 1], as torch.rand is in [0, 1)
        numbers = 1 - torch.rand(len(weights), 1, device=weights.device, generator=generator)
        return torch.searchsorted(edges, numbers * edges[:, -1:]).squeeze(1)

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
    takes O((B + T) R) memory.
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
            (T, R), numbers or a mask, as ``draw`` takes them; zero off ``negative``.
        """

    def mine(
        self, embeds: Tensor, references: Tensor, positive: Tensor, negative: Tensor
    ) -> Triplets:
        pairs = positive & any_in_row(negative)[:, None]
        anchors, positives = places(pairs)  # (T,), the one wait for the device
        weights = self.weights(embeds, references, negative, anchors, positives)  # (T, R)
        return Triplets(anchors, positives, self.draw(weights))


def every_triplet(positive: Tensor, negative: Tensor) -> Triplets:
    """Each anchor's positives with each of its negatives, from two (B, R) masks.

    Sorted by anchor, then positive, then negative.
    """
    n_positives, n_negatives = (
        mask.view(torch.uint8).sum(dim=1, dtype=torch.long) for mask in (positive, negative)
    )
    counts = torch.stack([n_positives.sum(), (n_positives * n_negatives).sum()])
    n_pairs, n_triplets = counts.tolist()  # the one wait for the device
    anchors, positives = places(positive, n_pairs)  # (P,)
    pairs, negatives = places(negative.index_select(0, anchors), n_triplets)  # (T,), of P pairs
    return Triplets(anchors[pairs], positives[pairs], negatives)


def rising(edges: Tensor, weights: Tensor) -> Tensor:
    """Cumulative sums (N, R) that grow at no column of zero weight and fall at none.

    A sequential sum has both properties; the parallel one of a GPU adds in another order for each
    column, so that neighbours may differ by rounding.
    """
    return edges.masked_fill(weights == 0, 0).cummax(dim=1).values


# A CPU counts bytes 2 to 20 times as fast as booleans.


def any_in_row(mask: Tensor) -> Tensor:
    """Which rows of a (B, R) mask have any True: (B,) bool."""
    return mask.view(torch.uint8).amax(dim=1).bool()


def places(mask: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows and columns of the Trues of a (B, R) mask, row by row.

    Args:
        count: how many there are; waits for the device to know where it is None.
    """
    mask = mask.view(torch.uint8)
    found = mask.nonzero() if count is None else mask.nonzero_static(size=count)
    rows, columns = found.unbind(dim=1)
    return rows, columns
